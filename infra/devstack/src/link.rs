//! The way into a region from outside, which can be cut: a TCP proxy before a port.
//!
//! A cut swallows what is sent, as a dead line does: connections stay open and nobody is told. Once it is healed, what was under way
//! arrives, late. Kafka's clients give up connections that are silent for long and open others; these wait likewise.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::{Error, Result};
use crate::ports::free_port;

/// What one read takes at most.
const CHUNK: usize = 64 << 10;

/// A proxy before one port of this machine. Dropping it resets every connection through it.
#[derive(Debug)]
pub(crate) struct Link {
    port: u16,
    whole: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// Begins to take connections for `target`, where nothing needs to listen yet.
    ///
    /// # Errors
    /// If no port is free.
    pub(crate) async fn to(target: u16) -> Result<Self> {
        let bind = async {
            let port = free_port()?;
            Ok((port, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?))
        };
        let (port, listener) = bind.await.map_err(Error::io("127.0.0.1"))?;
        let (whole, state) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // One that was reset before it was taken is no loss.
                        let Ok((client, _)) = accepted else { continue };
                        connections.spawn(carry(client, target, state.clone()));
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

/// Carries bytes both ways until either side is done.
async fn carry(client: TcpStream, target: u16, mut whole: watch::Receiver<bool>) {
    if whole.wait_for(|whole| *whole).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    // Without it the proxy would add Nagle's delay; a socket that has gone says so when it is read.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = copy(from_client, to_server, whole.clone()) => {}
        () = copy(from_server, to_client, whole) => {}
    }
}

/// Copies until one end has closed or the link is gone.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: watch::Receiver<bool>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(read @ 1..) = from.read(&mut chunk).await else { return };
        if whole.wait_for(|whole| *whole).await.is_err() || to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_cut_swallows_silently_and_what_was_under_way_arrives_when_it_is_healed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::to(listener.local_addr().unwrap().port()).await.unwrap();
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
        let link = Link::to(listener.local_addr().unwrap().port()).await.unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(client);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
