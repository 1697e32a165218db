//! The way into a region from outside, which can be cut: a TCP proxy before a port.
//!
//! A cut swallows what is sent, as a dead line does: connections stay open and nobody is told. Once it is healed, what was under way
//! arrives, late. Kafka's clients give up connections that are silent for long and open others; these wait likewise.
//! Single requests are mistreated by [`Rule`]s.

use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::{Error, Result};
use crate::ports::free_port;

mod connection;
mod frames;
mod rule;

use connection::carry;
pub(crate) use rule::Rules;
pub use rule::{Action, Api, Interception, Rule};

/// A proxy before one port of this machine. Dropping it resets every connection through it.
#[derive(Debug)]
pub(crate) struct Link {
    port: u16,
    whole: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// Begins to take connections for `target`, where nothing needs to listen yet. Kafka clients' requests are subject to `rules`.
    ///
    /// # Errors
    /// If no port is free.
    pub(crate) async fn to(target: u16, rules: &Rules) -> Result<Self> {
        let bind = async {
            let port = free_port()?;
            Ok((port, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?))
        };
        let (port, listener) = bind.await.map_err(Error::io("127.0.0.1"))?;
        let (whole, state) = watch::channel(true);
        let rules = rules.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // One that was reset before it was taken is no loss.
                        let Ok((client, _)) = accepted else { continue };
                        connections.spawn(open(client, target, state.clone(), rules.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { port, whole, accepting })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing comes through, either way.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets everything through again.
    pub(crate) fn heal(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Connects a client with the target, once the link is whole.
async fn open(client: TcpStream, target: u16, mut whole: watch::Receiver<bool>, rules: Rules) {
    if whole.wait_for(|whole| *whole).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    carry(client, server, whole, rules).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_cut_swallows_silently_and_what_was_under_way_arrives_when_it_is_healed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::to(listener.local_addr().unwrap().port(), &Rules::default()).await.unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 3];
        client.write_all(b"one").await.unwrap();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"one");

        link.cut();
        client.write_all(b"two").await.unwrap();
        let mut late = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
        late.write_all(b"new").await.unwrap();
        let silence = timeout(Duration::from_millis(200), stream.read_exact(&mut heard)).await;
        assert!(silence.is_err(), "the cut let {heard:?} through");

        link.heal();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"two");
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"new");
    }

    #[tokio::test]
    async fn a_side_that_leaves_ends_the_other() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::to(listener.local_addr().unwrap().port(), &Rules::default()).await.unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(client);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
