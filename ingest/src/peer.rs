//! One client connection, as far as the budgets are concerned: what it leaves unread, and its turn to wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Mutex as Turn;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Peer(Arc<Connection>);

/// A connection that may have gone.
#[derive(Debug, Clone)]
pub struct WeakPeer(Weak<Connection>);

#[derive(Debug, Default)]
struct Connection {
    unread: Mutex<Answers>,
    turn: Turn<()>,
    closing: CancellationToken,
}

/// Answers that are complete and not sent, by number, and since when.
#[derive(Debug, Default)]
struct Answers {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// An answer that its client has not taken, until dropped.
#[derive(Debug)]
pub struct Answer {
    peer: Peer,
    number: u64,
}

impl Peer {
    /// The same connection, without keeping it in memory.
    pub fn downgrade(&self) -> WeakPeer {
        WeakPeer(Arc::downgrade(&self.0))
    }

    /// One more answer waits to be taken.
    pub fn answer(&self) -> Answer {
        let mut answers = self.unread();
        let number = answers.next;
        answers.next += 1;
        answers.since.insert(number, Instant::now());
        drop(answers);
        Answer { peer: self.clone(), number }
    }

    /// Since when its oldest answer waits.
    pub fn unread_since(&self) -> Option<Instant> {
        self.unread().since.first_key_value().map(|(_, since)| *since)
    }

    /// One of a connection's requests waits for a budget at a time, or a client with many would be before all others in the queue.
    pub async fn turn(&self) -> impl Drop + use<'_> {
        self.0.turn.lock().await
    }

    /// Asks for the connection to be closed. Answers whether that is news.
    pub fn close(&self) -> bool {
        let news = !self.0.closing.is_cancelled();
        self.0.closing.cancel();
        news
    }

    /// Cancelled when the connection has to go.
    pub fn closing(&self) -> CancellationToken {
        self.0.closing.clone()
    }

    fn unread(&self) -> MutexGuard<'_, Answers> {
        self.0.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WeakPeer {
    /// The connection, if it is still there.
    pub fn upgrade(&self) -> Option<Peer> {
        self.0.upgrade().map(Peer)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.peer.unread().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_answer_is_the_one_that_counts() {
        let peer = Peer::default();
        let begun = Instant::now();
        let (first, second) = (peer.answer(), peer.answer());
        tokio::time::advance(Duration::from_secs(1)).await;
        let third = peer.answer();
        drop(second);
        assert_eq!(peer.unread_since(), Some(begun));
        drop(first);
        assert_eq!(peer.unread_since(), Some(begun + Duration::from_secs(1)));
        drop(third);
        assert_eq!(peer.unread_since(), None);
    }
}
