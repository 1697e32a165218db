//! Publish streams: the same messages are found in them however they are cut, each is a request or an error, and the budget gets back
//! what they took.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coderelay_schemas::pb::{CodePacket, PublishRequest};
use futures::stream;
use http::{HeaderMap, HeaderValue};
use http_body_util::StreamBody;
use ingest::admission::{Admission, Limits};
use ingest::frames::{FrameLimits, Frames};
use ingest::peer::Peer;
use ingest::wire::{Call, RawRequest, non_utf8_field};
use prost::Message as _;
use tonic::body::Body;

const MAX_MESSAGE: u32 = 64 * 1024;
const MAX_PACKETS: usize = 100;

/// The messages of a stream whose bytes arrive in pieces of this size, and the reason if something ended it before its end.
async fn messages(encoding: &'static str, bytes: &[u8], piece: usize) -> (Vec<Bytes>, Option<&'static str>) {
    let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
    let body = stream::iter(pieces.into_iter().map(|piece| Ok::<_, tonic::Status>(http_body::Frame::data(piece))));
    let headers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-encoding"), HeaderValue::from_static(encoding))]);
    let (bytes, max_wait) = (MAX_MESSAGE, Duration::from_secs(1));
    let admission = Arc::new(Admission::new(Limits { bytes, packets: 100, overflow: bytes, max_wait }));
    let limits = FrameLimits {
        max_message_size: MAX_MESSAGE,
        idle_timeout: Duration::from_secs(1),
        message_timeout: Duration::from_secs(1),
    };
    let mut frames =
        Frames::new(&headers, Body::new(StreamBody::new(body)), Arc::clone(&admission), Peer::default(), limits)
            .unwrap();
    let mut found = Vec::new();
    let ended = loop {
        match frames.next().await {
            Ok(Some(frame)) => {
                assert_eq!(admission.bytes_in_use(), frame.message.len() as u64);
                assert!(frame.message.len() <= MAX_MESSAGE as usize);
                found.push(frame.message);
            }
            Ok(None) => break None,
            Err(failure) => break Some(failure.reason),
        }
    };
    assert_eq!(admission.bytes_in_use(), 0);
    (found, ended)
}

/// Taken apart, a message has the packets that the generated types find in it where they take it, and may have others where they do not.
fn is_a_request_or_an_error(message: &Bytes) {
    for call in [Call::Publish, Call::PublishBatch] {
        let Ok(request) = RawRequest::decode(call, message.clone(), MAX_PACKETS) else { continue };
        assert!(request.count <= MAX_PACKETS);
        let (seq, count) = (request.seq, request.count);
        let packets: Vec<_> = request.packets().collect();
        assert_eq!(packets.len(), count);
        for packet in &packets {
            assert!(CodePacket::decode(packet.clone()).is_err() || non_utf8_field(packet.clone()).is_none());
        }
        if let (Call::Publish, Ok(generated)) = (call, PublishRequest::decode(message.clone())) {
            assert_eq!(seq, generated.seq);
            let packets: Result<Vec<_>, _> = packets.into_iter().map(CodePacket::decode).collect();
            assert_eq!(packets.unwrap(), generated.packets);
        }
    }
}

#[test]
fn any_publish_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    bolero::check!().for_each(|input: &[u8]| {
        for encoding in ["identity", "gzip"] {
            let whole = runtime.block_on(messages(encoding, input, input.len().max(1)));
            assert_eq!(runtime.block_on(messages(encoding, input, 7)), whole);
            whole.0.iter().for_each(is_a_request_or_an_error);
        }
    });
}
