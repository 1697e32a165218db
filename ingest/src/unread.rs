//! The budget of results that wait for their client to read them.
//!
//! A client decides how fast it reads: it may open an HTTP/2 window of one byte, or leave its socket alone (CVE-2019-9517). A packet
//! of two bytes is refused with some hundreds, so answers need a bound of their own. A result has its place from the moment its
//! packet's fate is to be told until its last byte has left for the socket. When no place is free, connections that have left an
//! answer unread for longer than [`PATIENCE`] are closed: one slow reader must not hold up the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::peer::{Answer, Peer, WeakPeer};

/// How long an answer may be unread while others wait for its place, and how long these wait before they look again.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The budget itself. One per process.
#[derive(Debug)]
pub struct Unread {
    places: Arc<Semaphore>,
    limit: u32,
    peers: Mutex<Vec<WeakPeer>>,
}

/// The places of one answer. They return to the budget on drop.
#[derive(Debug)]
pub struct Places {
    permit: OwnedSemaphorePermit,
    peer: Peer,
    answer: Option<Answer>,
}

/// All places stayed taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many results wait for their clients to read them")]
pub struct Full;

impl Unread {
    /// A budget of this many results.
    pub fn new(limit: u32) -> Self {
        Self { places: Arc::new(Semaphore::new(limit as usize)), limit, peers: Mutex::default() }
    }

    /// A new connection.
    pub fn connect(&self) -> Peer {
        let peer = Peer::default();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|known| known.upgrade().is_some());
        peers.push(peer.downgrade());
        peer
    }

    /// Waits for the places of an answer with this many results. One that is larger than the whole budget gets the whole budget;
    /// one without results takes a place too.
    ///
    /// # Errors
    /// [`Full`], when no place came free although slow readers were closed.
    pub async fn reserve(&self, peer: &Peer, results: u32) -> Result<Places, Full> {
        let charge = results.clamp(1, self.limit);
        let permit = match Arc::clone(&self.places).try_acquire_many_owned(charge) {
            Ok(permit) => permit,
            Err(_none_free) => self.wait(charge).await.ok_or(Full)?,
        };
        Ok(Places { permit, peer: peer.clone(), answer: None })
    }

    async fn wait(&self, charge: u32) -> Option<OwnedSemaphorePermit> {
        // Answers that were just completed have had no time yet: hence a second look.
        for _ in 0..2 {
            self.close_slow_readers();
            let acquired = timeout(PATIENCE, Arc::clone(&self.places).acquire_many_owned(charge)).await;
            if let Ok(Ok(permit)) = acquired {
                return Some(permit);
            }
        }
        None
    }

    fn close_slow_readers(&self) {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in peers.iter().filter_map(WeakPeer::upgrade) {
            if peer.unread_since().is_some_and(|since| since.elapsed() >= PATIENCE) && peer.close() {
                tracing::warn!("closing a connection that does not read its answers: others wait for their places");
            }
        }
    }

    /// Results that wait to be read, or have their place already while their packets are on the way.
    pub fn in_use(&self) -> u64 {
        u64::from(self.limit) - self.places.available_permits() as u64
    }
}

impl Places {
    /// The answer is complete: from now on its client is waited for.
    pub fn complete(&mut self) {
        self.answer = Some(self.peer.answer());
    }

    /// Takes the places of a later answer to the same client, with which this one leaves.
    pub fn join(&mut self, later: Self) {
        self.permit.merge(later.permit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn places_return_when_an_answer_has_left() {
        let unread = Unread::new(10);
        let peer = unread.connect();
        let mut first = unread.reserve(&peer, 6).await.unwrap();
        first.complete();
        let mut second = unread.reserve(&peer, 0).await.unwrap();
        second.complete();
        first.join(second);
        assert_eq!(unread.in_use(), 7);
        drop(first);
        assert_eq!((unread.in_use(), peer.unread_since()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_larger_than_the_budget_gets_all_of_it() {
        let unread = Unread::new(10);
        let _all = unread.reserve(&unread.connect(), 1000).await.unwrap();
        assert_eq!(unread.in_use(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_closed_when_others_wait_and_nobody_else() {
        let unread = Unread::new(10);
        let [slow, busy, idle] = [unread.connect(), unread.connect(), unread.connect()];
        let mut held = unread.reserve(&slow, 9).await.unwrap();
        held.complete();
        let _in_kafka = unread.reserve(&busy, 1).await.unwrap();
        let closed = slow.closing();
        tokio::spawn(async move {
            closed.cancelled().await;
            drop(held);
        });
        let started = Instant::now();
        unread.reserve(&idle, 5).await.unwrap();
        assert_eq!(started.elapsed(), PATIENCE, "until then the answer had not waited for long");
        assert!(!slow.close() && busy.close() && idle.close());
    }

    #[tokio::test(start_paused = true)]
    async fn without_slow_readers_nobody_is_closed_and_the_wait_ends() {
        let unread = Unread::new(10);
        let busy = unread.connect();
        let _in_kafka = unread.reserve(&busy, 10).await.unwrap();
        assert_eq!(unread.reserve(&busy, 1).await.unwrap_err(), Full);
        assert!(busy.close());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_have_gone_are_forgotten() {
        let unread = Unread::new(10);
        for _ in 0..100 {
            unread.connect();
        }
        assert_eq!(unread.peers.lock().unwrap().len(), 1);
    }
}
