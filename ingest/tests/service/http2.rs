//! HTTP/2 frame by frame (RFC 9113), for what no client library would do.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `SETTINGS_INITIAL_WINDOW_SIZE`
const INITIAL_WINDOW: u16 = 4;

/// Code of a `RST_STREAM`: the stream is no longer needed.
pub(crate) const CANCEL: u32 = 8;

/// Code of a GOAWAY: the peer behaves in a way that might be abuse.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// Largest payload that the server has to accept.
const MAX_FRAME: usize = 16_384;

/// A connection that has been greeted.
pub(crate) struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// One with a flow-control window of so many bytes for each stream.
    pub(crate) async fn open(port: u16, window: u32) -> io::Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut reader, mut writer) = tcp.into_split();
        let settings = [&INITIAL_WINDOW.to_be_bytes()[..], &window.to_be_bytes()].concat();
        writer.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).await?;
        while read_frame(&mut reader).await?.0 != SETTINGS {}
        writer.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
        Ok(Self { reader, writer })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// Sends what `next` makes up to so many times, and reads what comes back, until the server has had enough. Answers the code of
    /// its GOAWAY, if it sent one.
    pub(crate) async fn flood(self, times: u32, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
        let Self { mut reader, mut writer } = self;
        let sent = async move {
            for n in 0..times {
                if writer.write_all(&next(n)).await.is_err() {
                    return;
                }
            }
        };
        let read = async {
            let mut code = None;
            while let Ok((kind, payload)) = read_frame(&mut reader).await {
                if kind == GOAWAY {
                    code = payload[4..8].try_into().ok().map(u32::from_be_bytes);
                }
            }
            code
        };
        tokio::join!(sent, read).1
    }

    /// The same, and reads nothing. Ends when the server has closed the connection.
    pub(crate) async fn flood_unread(mut self, frames: &[u8]) {
        while self.send(frames).await.is_ok() {}
    }
}

/// Kind and payload of the next frame.
async fn read_frame(reader: &mut OwnedReadHalf) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await?;
    let [l0, l1, l2, kind, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
    reader.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The number of a client's stream `n`, from 0.
pub(crate) fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// Opens a call.
pub(crate) fn call(stream: u32, method: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_headers(method))
}

/// A whole call with one request message.
pub(crate) fn unary(stream: u32, method: &str, message: &[u8]) -> Vec<u8> {
    let body = [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat();
    let mut bytes = call(stream, method);
    let mut chunks = body.chunks(MAX_FRAME).peekable();
    while let Some(chunk) = chunks.next() {
        bytes.extend(frame(DATA, if chunks.peek().is_none() { END_STREAM } else { 0 }, stream, chunk));
    }
    bytes
}

/// The header block of a call: POST, http, and literals that enter no table (RFC 7541).
pub(crate) fn call_headers(method: &str) -> Vec<u8> {
    let path = text(&format!("/coderelay.v1.Ingest/{method}"));
    [&[0x83, 0x86, 0x04][..], &path, &[0x01], &text("localhost"), &[0x0f, 0x10], &text("application/grpc")].concat()
}

/// A header that is a literal and enters the table, or does not.
pub(crate) fn header(name: &str, value: &str, indexed: bool) -> Vec<u8> {
    [&[if indexed { 0x40 } else { 0 }][..], &text(name), &text(value)].concat()
}

/// A string without Huffman coding.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match text.len().checked_sub(127) {
        None => bytes.push(text.len() as u8),
        Some(mut rest) => {
            bytes.push(127);
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 0x80);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
