//! Messages of one call, read under the byte budget.
//!
//! A gRPC message starts with its length, so its place in the budget is reserved before the first byte of it is buffered.
//! tonic's own `Streaming` buffers whole messages before anybody hears of them; with it, memory would be bounded by streams
//! times message size. Framing and compression are those of gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`).

use std::io::Read;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::body::Body;

use crate::admission::{Admission, Reservation};
use crate::outcome::Failure;
use crate::peer::Peer;

/// Compressed flag (1 byte) and length (4 bytes, big-endian).
const PREFIX: usize = 5;

/// How often a message that is on its way is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Bounds of one message on the wire.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Most bytes of a message, before and after decompression.
    pub max_message_size: u32,
    /// How long a call may be silent between two messages.
    pub idle_timeout: Duration,
    /// How long a message may take from its first byte to its last, once there is room for it.
    pub message_timeout: Duration,
}

/// One message and its place in the budget.
#[derive(Debug)]
pub struct Frame {
    /// The encoded message, decompressed.
    pub message: Bytes,
    /// Covers the message's bytes.
    pub reservation: Reservation,
    /// When its first bytes were seen.
    pub received: Instant,
}

/// Reads the messages of one call, one at a time.
#[derive(Debug)]
pub struct Frames {
    body: Body,
    /// Received and not consumed yet: at most one HTTP/2 frame.
    chunk: Bytes,
    gzip: bool,
    admission: Arc<Admission>,
    peer: Peer,
    limits: FrameLimits,
}

impl Frames {
    /// The messages of a call with these headers and this body, which came over this connection.
    ///
    /// # Errors
    /// `UNIMPLEMENTED` if the client compresses with anything but gzip.
    pub fn new(
        headers: &HeaderMap,
        body: Body,
        admission: Arc<Admission>,
        peer: Peer,
        limits: FrameLimits,
    ) -> Result<Self, Failure> {
        let gzip = match headers.get("grpc-encoding").map(http::HeaderValue::as_bytes) {
            None | Some(b"identity") => false,
            Some(b"gzip") => true,
            Some(_) => {
                let message = "the request's grpc-encoding is not supported: use identity or gzip";
                return Err(Failure::permanent(Code::Unimplemented, "ENCODING_UNSUPPORTED", message));
            }
        };
        Ok(Self { body, chunk: Bytes::new(), gzip, admission, peer, limits })
    }

    /// The next message, or `None` when the client has closed its side.
    ///
    /// # Errors
    /// What ends the call: silence, a message that is too large, too slow, cut short or compressed wrongly, or a client
    /// that has gone (`CANCELLED`; nobody hears it).
    pub async fn next(&mut self) -> Result<Option<Frame>, Failure> {
        // No timer for what is there already, as in `take`: most messages are small and come several in one chunk.
        if self.chunk.is_empty() {
            let more = timeout(self.limits.idle_timeout, self.more()).await;
            if !more.unwrap_or_else(|_elapsed| Err(idle()))? {
                return Ok(None);
            }
        }
        let received = Instant::now();
        let (compressed, length) = self.prefix().await?;
        // A compressed message does not say how far it will expand.
        let most = if compressed { self.limits.max_message_size } else { length };
        let mut reservation = self.admission.reserve(&self.peer, most).await;
        let message = self.take(length as usize).await?;
        let message = if compressed { self.expand(&message)? } else { message };
        reservation.shrink_to(message.len() as u32);
        Ok(Some(Frame { message, reservation, received }))
    }

    async fn prefix(&mut self) -> Result<(bool, u32), Failure> {
        let mut prefix = self.take(PREFIX).await?;
        let compressed = match prefix.get_u8() {
            0 => false,
            1 if self.gzip => true,
            _ => {
                let message = "the message's compressed flag contradicts the call's grpc-encoding";
                return Err(Failure::permanent(Code::Internal, "REQUEST_MALFORMED", message));
            }
        };
        let length = prefix.get_u32();
        if length > self.limits.max_message_size {
            Err(self.too_large(u64::from(length)))
        } else {
            Ok((compressed, length))
        }
    }

    /// Exactly `length` bytes, in one piece and in time.
    async fn take(&mut self, length: usize) -> Result<Bytes, Failure> {
        if self.chunk.len() >= length {
            return Ok(self.chunk.split_to(length));
        }
        timeout(self.limits.message_timeout, self.gather(length)).await.unwrap_or_else(|_elapsed| Err(too_slow()))
    }

    async fn gather(&mut self, length: usize) -> Result<Bytes, Failure> {
        let begun = tokio::time::Instant::now();
        let mut gathered = BytesMut::with_capacity(length);
        let mut look = pin!(sleep(LOOK));
        while gathered.len() < length {
            tokio::select! {
                biased;
                more = self.more() => {
                    if !more? {
                        let message = "the stream ends in the middle of a message";
                        return Err(Failure::permanent(Code::InvalidArgument, "REQUEST_TRUNCATED", message));
                    }
                    let share = self.chunk.len().min(length - gathered.len());
                    gathered.extend_from_slice(&self.chunk.split_to(share));
                }
                () = &mut look => {
                    if self.is_in_the_way(gathered.len(), length, begun.elapsed()) {
                        return Err(too_slow());
                    }
                    look.as_mut().reset(tokio::time::Instant::now() + LOOK);
                }
            }
        }
        Ok(gathered.freeze())
    }

    /// Whether others wait for the room of a message that will not be there in time. Five bytes announce a message of any length, and
    /// reserve as much: a client that sends no more than these would hold the budget for nothing.
    fn is_in_the_way(&self, gathered: usize, length: usize, elapsed: Duration) -> bool {
        let due = length as f64 * elapsed.as_secs_f64() / self.limits.message_timeout.as_secs_f64();
        (gathered as f64) < due && elapsed >= self.admission.patience() && self.admission.is_awaited()
    }

    /// Sees to it that `chunk` has at least one byte; `false` at the end of the stream.
    async fn more(&mut self) -> Result<bool, Failure> {
        while self.chunk.is_empty() {
            match self.body.frame().await {
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(_status)) => return Err(gone()),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn expand(&self, compressed: &Bytes) -> Result<Bytes, Failure> {
        let limit = u64::from(self.limits.max_message_size);
        let mut expanded = Vec::new();
        let decoder = MultiGzDecoder::new(compressed.as_ref());
        match decoder.take(limit + 1).read_to_end(&mut expanded) {
            Ok(length) if length as u64 > limit => Err(self.too_large(length as u64)),
            Ok(_) => Ok(expanded.into()),
            Err(error) => {
                let message = format!("the compressed message cannot be expanded: {error}");
                Err(Failure::permanent(Code::InvalidArgument, "REQUEST_MALFORMED", message))
            }
        }
    }

    fn too_large(&self, length: u64) -> Failure {
        let limit = self.limits.max_message_size;
        let message = format!("the message has {length} or more bytes; at most {limit} are allowed: split the request");
        Failure::permanent(Code::OutOfRange, "REQUEST_TOO_LARGE", message)
    }
}

/// The client takes too long over a message.
fn too_slow() -> Failure {
    let message = "the client began a message and did not finish it in time";
    Failure::permanent(Code::DeadlineExceeded, "REQUEST_TOO_SLOW", message)
}

/// The call was silent for longer than it may be.
pub fn idle() -> Failure {
    let message = "nothing moved on this stream for too long; open it again when there is something to send";
    Failure::permanent(Code::DeadlineExceeded, "STREAM_IDLE", message)
}

/// The client has left.
pub fn gone() -> Failure {
    Failure::permanent(Code::Cancelled, "CLIENT_GONE", "the client has gone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Limits;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures::stream;
    use http_body_util::StreamBody;
    use std::io::Write;

    const LIMITS: FrameLimits = FrameLimits {
        max_message_size: 1000,
        idle_timeout: Duration::from_secs(600),
        message_timeout: Duration::from_secs(30),
    };

    fn message(flag: u8, payload: &[u8]) -> Vec<u8> {
        [&[flag][..], &(payload.len() as u32).to_be_bytes(), payload].concat()
    }

    /// A call whose bytes arrive in pieces of this size, and which then stays open or ends.
    fn frames(encoding: &'static str, bytes: &[u8], piece: usize, ends: bool) -> Frames {
        use futures::StreamExt;

        let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let pieces = stream::iter(pieces).map(|piece| Ok::<_, tonic::Status>(http_body::Frame::data(piece)));
        let body = if ends {
            Body::new(StreamBody::new(pieces))
        } else {
            Body::new(StreamBody::new(pieces.chain(stream::pending())))
        };
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", http::HeaderValue::from_static(encoding));
        let budget = Limits { bytes: 2000, packets: 10, overflow: 1000, max_wait: Duration::from_secs(2) };
        Frames::new(&headers, body, Arc::new(Admission::new(budget)), Peer::default(), LIMITS).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_found_however_the_bytes_are_cut() {
        let bytes = [message(0, b"one"), message(0, b""), message(0, &[7; 500])].concat();
        for piece in [1, 2, 3, 7, 100, 1000] {
            let mut frames = frames("identity", &bytes, piece, true);
            for expected in [&b"one"[..], b"", &[7; 500]] {
                assert_eq!(frames.next().await.unwrap().unwrap().message, expected);
            }
            assert!(frames.next().await.unwrap().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_charged_before_the_message_is_there() {
        let mut frames = frames("identity", &message(0, &[0; 900])[..100], 100, false);
        let admission = Arc::clone(&frames.admission);
        assert!(timeout(Duration::from_secs(1), frames.next()).await.is_err());
        assert_eq!(admission.bytes_in_use(), 0, "a call that is dropped gives its reservation back");
        let mut frames = Frames { admission: Arc::clone(&admission), ..frames };
        frames.chunk = message(0, &[0; 900]).into();
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!(admission.bytes_in_use(), 900);
        drop(frame);
        assert_eq!(admission.bytes_in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let failure = frames("identity", &[0, 0, 0, 0x10, 0], 5, false).next().await.unwrap_err();
        assert_eq!((failure.code, failure.reason), (Code::OutOfRange, "REQUEST_TOO_LARGE"));
        assert_eq!(failure.retry_after, None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_slowness_have_their_limits() {
        let started = tokio::time::Instant::now();
        let silent = frames("identity", b"", 1, false).next().await.unwrap_err();
        assert_eq!((silent.code, silent.reason), (Code::DeadlineExceeded, "STREAM_IDLE"));
        assert_eq!(started.elapsed(), LIMITS.idle_timeout);
        let slow = frames("identity", &message(0, b"hello")[..7], 7, false).next().await.unwrap_err();
        assert_eq!(slow.reason, "REQUEST_TOO_SLOW");
        let cut = frames("identity", &message(0, b"hello")[..7], 7, true).next().await.unwrap_err();
        assert_eq!(cut.reason, "REQUEST_TRUNCATED");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_announced_and_not_sent_gives_way_to_others() {
        let begun = tokio::time::Instant::now();
        let mut silent = frames("identity", &message(0, &[0; 1000])[..5], 5, false);
        let admission = Arc::clone(&silent.admission);
        let _other = admission.reserve(&Peer::default(), 1000).await;
        let (failure, reservation) = tokio::join!(silent.next(), async {
            sleep(Duration::from_secs(3)).await;
            admission.reserve(&Peer::default(), 500).await
        });
        assert_eq!(failure.unwrap_err().reason, "REQUEST_TOO_SLOW");
        assert!(begun.elapsed() <= admission.patience() + LOOK, "{:?}", begun.elapsed());
        assert!(admission.admit(reservation, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_compressed_message_is_expanded_within_the_limit() {
        let gzip = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let bytes = [message(1, &gzip(&[7; 900])), message(1, &gzip(&[7; 5000]))].concat();
        let mut frames = frames("gzip", &bytes, 1000, true);
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!((frame.message.len(), frames.admission.bytes_in_use()), (900, 900));
        assert_eq!(frames.next().await.unwrap_err().reason, "REQUEST_TOO_LARGE");
    }

    #[tokio::test(start_paused = true)]
    async fn compression_that_was_not_announced_is_refused() {
        assert_eq!(frames("identity", &message(1, b"x"), 9, true).next().await.unwrap_err().code, Code::Internal);
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", http::HeaderValue::from_static("br"));
        let admission = Arc::clone(&frames("identity", b"", 1, true).admission);
        let refused = Frames::new(&headers, Body::empty(), admission, Peer::default(), LIMITS).unwrap_err();
        assert_eq!(refused.code, Code::Unimplemented);
    }
}
