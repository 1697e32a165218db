//! Kafka's framing: each request and each response has its length in front (<https://kafka.apache.org/protocol#protocol_common>).

use std::mem;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What one read has room for at least.
const CHUNK: usize = 64 << 10;

/// The longest frame there can be: what brokers accept by default (`socket.request.max.bytes`).
const MAX_LENGTH: usize = 100 << 20;

/// Of the length in front of a frame, which does not count itself.
const LENGTH: usize = 4;

/// A request's first bytes: `length: int32, api_key: int16, api_version: int16, correlation_id: int32`.
pub(crate) type RequestHeader = [u8; 12];

/// A response's first bytes: `length: int32, correlation_id: int32`.
pub(crate) type ResponseHeader = [u8; 8];

/// What is asked for, and the number that the response will carry.
pub(crate) fn api_key_and_correlation_id(header: RequestHeader) -> (i16, i32) {
    let [_, _, _, _, key_high, key_low, _, _, id @ ..] = header;
    (i16::from_be_bytes([key_high, key_low]), i32::from_be_bytes(id))
}

/// The number of the request that is answered.
pub(crate) fn correlation_id(header: ResponseHeader) -> i32 {
    let [_, _, _, _, id @ ..] = header;
    i32::from_be_bytes(id)
}

/// A stream of frames that begin with `HEADER` bytes of interest, read as it comes: only within a header is more waited for. From the first
/// frame of impossible length on, the stream is taken for something else, and comes through unseen.
#[derive(Debug)]
pub(crate) struct Frames<R, const HEADER: usize> {
    from: R,
    /// What was read and not taken.
    buffer: BytesMut,
    /// Until the next frame begins, counted from the start of the buffer.
    rest: usize,
}

impl<R: AsyncRead + Unpin, const HEADER: usize> Frames<R, HEADER> {
    /// The frames of `from`, the first of which begins with the next byte.
    pub(crate) fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new(), rest: 0 }
    }

    /// Takes what has arrived before the first frame that `select` has an answer for, with that answer, or else all that has arrived.
    /// `None` when there is no more.
    pub(crate) async fn next<T>(
        &mut self,
        mut select: impl FnMut([u8; HEADER]) -> Option<T>,
    ) -> Option<(Bytes, Option<T>)> {
        loop {
            let (end, selected) = self.scan(&mut select);
            if end > 0 || selected.is_some() {
                return Some((self.buffer.split_to(end).freeze(), selected));
            }
            if self.fill().await.is_none() {
                // Cut off within a header.
                let remains = self.buffer.split().freeze();
                return (!remains.is_empty()).then_some((remains, None));
            }
        }
    }

    /// Takes all of the frame that [`next`](Self::next) has just selected. `None` if the stream ends within it.
    pub(crate) async fn selected(&mut self) -> Option<Bytes> {
        while self.buffer.len() < self.rest {
            self.fill().await?;
        }
        Some(self.buffer.split_to(mem::take(&mut self.rest)).freeze())
    }

    /// Where the first selected frame begins in the buffer, or else where that ends which can be passed on.
    fn scan<T>(&mut self, select: &mut impl FnMut([u8; HEADER]) -> Option<T>) -> (usize, Option<T>) {
        let mut at = 0;
        loop {
            let passed = self.rest.min(self.buffer.len() - at);
            at += passed;
            self.rest -= passed;
            let start = &self.buffer[at..];
            if start.is_empty() {
                return (at, None);
            }
            let Some(frame) = frame_bytes(start, HEADER) else {
                self.rest = usize::MAX;
                continue;
            };
            let Some(header) = start.first_chunk() else { return (at, None) };
            self.rest = frame;
            let selected = select(*header);
            if selected.is_some() {
                return (at, selected);
            }
        }
    }

    async fn fill(&mut self) -> Option<()> {
        self.buffer.reserve(CHUNK);
        let read = self.from.read_buf(&mut self.buffer).await.ok()?;
        (read > 0).then_some(())
    }
}

/// The size of the frame that starts so, as far as its length has been read. `None` if there can be no such frame.
fn frame_bytes(start: &[u8], header: usize) -> Option<usize> {
    let mut length = [0; LENGTH];
    length.iter_mut().zip(start).for_each(|(byte, read)| *byte = *read);
    let frame = u32::from_be_bytes(length) as usize + LENGTH;
    let too_short = start.len() >= LENGTH && frame < header;
    (frame <= MAX_LENGTH + LENGTH && !too_short).then_some(frame)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn request(api_key: i16, correlation_id: i32, body: &[u8]) -> Vec<u8> {
        let length = (8 + body.len()) as i32;
        let (length, key, id) = (length.to_be_bytes(), api_key.to_be_bytes(), correlation_id.to_be_bytes());
        [&length[..], &key, &[0, 1], &id, body].concat()
    }

    /// All bytes of a stream that arrives in pieces of `piece` bytes, and each frame that begins in it: where, and its header.
    async fn read(stream: Vec<u8>, piece: usize) -> (Vec<u8>, Vec<(usize, (i16, i32))>) {
        let (mut to, from) = tokio::io::duplex(piece);
        tokio::spawn(async move { to.write_all(&stream).await });
        let mut frames = Frames::new(from);
        let (mut bytes, mut headers) = (Vec::new(), Vec::new());
        while let Some((before, header)) = frames.next(|header| Some(api_key_and_correlation_id(header))).await {
            bytes.extend(before);
            headers.extend(header.map(|header| (bytes.len(), header)));
        }
        (bytes, headers)
    }

    #[tokio::test]
    async fn frames_are_found_and_every_byte_comes_through_however_the_stream_is_cut_up() {
        let stream = [request(0, 7, &[0; 20]), request(26, 8, b""), request(1, 9, b"x")].concat();
        for piece in 1..=stream.len() {
            let (bytes, headers) = read(stream.clone(), piece).await;
            assert_eq!(bytes, stream);
            assert_eq!(headers, [(0, (0, 7)), (32, (26, 8)), (44, (1, 9))], "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_comes_through_unseen() {
        let (tls, short, negative) = (b"\x16\x03\x01".to_vec(), vec![0, 0, 0, 7, 0, 26], vec![0xff; 40]);
        for stream in [tls, short, negative, vec![0, 0], (MAX_LENGTH as u32 + 1).to_be_bytes().to_vec()] {
            let stream = [request(0, 7, b"x"), stream].concat();
            let (bytes, headers) = read(stream.clone(), 5).await;
            assert_eq!(bytes, stream);
            assert_eq!(headers, [(0, (0, 7))]);
        }
    }

    #[tokio::test]
    async fn a_frame_is_passed_on_before_it_is_complete() {
        let (mut to, from) = tokio::io::duplex(CHUNK);
        let mut frames = Frames::new(from);
        let request = request(0, 7, &[0; 1000]);
        to.write_all(&request[..500]).await.unwrap();
        let (bytes, selected) = frames.next(|_: RequestHeader| None::<()>).await.unwrap();
        assert_eq!((bytes.len(), selected), (500, None));
    }

    #[tokio::test]
    async fn a_selected_frame_can_be_taken_whole() {
        let (first, second) = (request(0, 7, b"first"), request(26, 8, &[0; 1000]));
        let (mut to, from) = tokio::io::duplex(100);
        let stream = [first.clone(), second.clone(), first.clone()].concat();
        tokio::spawn(async move { to.write_all(&stream).await });
        let mut frames = Frames::new(from);
        let end_txn = |header| (api_key_and_correlation_id(header).0 == 26).then_some(());
        assert_eq!(frames.next(end_txn).await, Some((Bytes::from(first.clone()), Some(()))));
        assert_eq!(frames.selected().await.unwrap(), second);
        assert_eq!(frames.next(end_txn).await, Some((Bytes::from(first), None)));
        assert_eq!(frames.next(end_txn).await, None);
    }
}
