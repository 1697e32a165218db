//! The gRPC port: at most so many connections, and one more is not accepted before another has closed.
//!
//! So each has to be worth its place. hyper waits for a client's first bytes for ever, and for a client that does not read what is
//! sent to it as well, its unanswered pings notwithstanding: the GOAWAY that would end the connection cannot be written either.
//! Deadlines on the socket itself end both.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::metrics::{METRICS, Present};
use crate::peer::Peer;
use crate::unread::Unread;

/// Pause after an error of `accept`, such as no free file descriptors: it does not pass by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may linger: after its last call when the process leaves, for example with a health watch open, and
/// after it was closed here until its client has closed it too.
pub const LINGER: Duration = Duration::from_secs(1);

/// Bytes with which every HTTP/2 client begins (RFC 9113, section 3.4).
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// How long a connection may be of no use.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From its start to the end of the client's preface; with TLS, to its first bytes.
    pub handshake: Duration,
    /// Without a byte from the client, which has pings to answer.
    pub silence: Duration,
    /// Without a byte being taken by the client while there are some for it.
    pub stall: Duration,
    /// Whether TLS, whose handshake has a deadline elsewhere, comes before the preface.
    pub tls: bool,
}

/// Binds the port.
///
/// # Errors
/// The address is taken or not this machine's; the message names it.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("grpc.listen {address} cannot be bound: {error}")))
}

/// Connections as they come in, `max` at one time.
pub fn connections(
    listener: TcpListener,
    max: usize,
    deadlines: Deadlines,
    unread: Arc<Unread>,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(max));
    futures::stream::unfold((listener, places, unread), move |(listener, places, unread)| async move {
        let accepted = accept(&listener, &places).await;
        let connection = accepted.map(|(tcp, place)| Connection::new(tcp, place, deadlines, unread.connect()));
        Some((connection, (listener, places, unread)))
    })
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    match listener.accept().await {
        Ok((tcp, _address)) => {
            // Answers are small and must not wait for each other.
            tcp.set_nodelay(true)?;
            Ok((tcp, place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection cannot be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            Err(error)
        }
    }
}

/// A connection that gives its place back when it is closed.
#[derive(Debug)]
pub struct Connection {
    tcp: TcpStream,
    peer: Peer,
    deadlines: Deadlines,
    /// Bytes of the preface that have not come yet.
    awaited: usize,
    /// Runs out when the client is silent.
    silent: Pin<Box<Sleep>>,
    /// Runs out when the client does not take what is sent. Only there while something waits.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs out when the client does not close its side.
    closing: Option<Pin<Box<Sleep>>>,
    /// Completes when somebody else needs what the connection holds.
    dismissed: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
    _present: Present,
}

impl Connection {
    fn new(tcp: TcpStream, place: OwnedSemaphorePermit, deadlines: Deadlines, peer: Peer) -> Self {
        Self {
            tcp,
            deadlines,
            awaited: if deadlines.tls { 0 } else { PREFACE },
            silent: Box::pin(sleep(deadlines.handshake)),
            stalled: None,
            closing: None,
            dismissed: Box::pin(peer.closing().cancelled_owned()),
            peer,
            _place: place,
            _present: METRICS.connections.enter(),
        }
    }

    /// Counts what has come: a deadline moves on, but not with single bytes of a preface.
    fn heard(&mut self, bytes: usize) {
        self.awaited = self.awaited.saturating_sub(bytes);
        if self.awaited == 0 && bytes > 0 {
            self.silent.as_mut().reset(Instant::now() + self.deadlines.silence);
        }
    }

    /// Ready when there is a reason to wait for this client no longer.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let stalled = self.stalled.as_mut().is_some_and(|stalled| stalled.as_mut().poll(cx).is_ready());
        if stalled || self.silent.as_mut().poll(cx).is_ready() {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        self.dismissed.as_mut().poll(cx).map(|()| io::ErrorKind::ConnectionAborted.into())
    }

    /// What a write came to: one that has to wait is waited for, but not for ever.
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.deadlines.stall;
        self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        self.poll_end(cx).map(Err)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.heard(buf.filled().len() - before);
        // Also when there is something to read: a preface may come byte by byte, a dismissed client may go on sending.
        match self.poll_end(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    /// Closes this side, then drops what the client still sends until it has closed its own. A socket that is closed with bytes
    /// unread resets the connection, and a client that is still sending would lose its last answers to that.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, closing, .. } = &mut *self;
        if closing.is_none() {
            ready!(Pin::new(&mut *tcp).poll_shutdown(cx))?;
        }
        let closing = closing.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut unread = [0; 16 * 1024];
        loop {
            let mut unread = ReadBuf::new(&mut unread);
            ready!(Pin::new(&mut *tcp).poll_read(cx, &mut unread))?;
            if unread.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
