//! Responses as gRPC frames them over HTTP/2 (`PROTOCOL-HTTP2.md`), never compressed: they are mostly ids.
//!
//! tonic's own encoder hands bytes over and forgets them, and hyper keeps them for as long as the client leaves its flow-control
//! window closed. Here the bytes of an answer own its [`Places`], so memory and budget are given back together.

use bytes::Bytes;
use coderelay_schemas::pb::{PublishBatchResponse, PublishResponse};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;

use crate::reply::{Answer, Results};
use crate::unread::Places;

/// Results from which on a response is not added to: clients refuse large messages, gRPC's own limit is 4 MiB.
const RESULTS_GATHERED: usize = 100;

/// Compressed flag (1 byte) and length (4 bytes, big-endian).
const PREFIX: usize = 5;

/// The response of `PublishBatch`.
pub fn unary(answer: Results) -> Response<Body> {
    let message = framed(&PublishBatchResponse { results: answer.results }, answer.places);
    respond(tokio_stream::iter([Ok(message), Err(Status::ok(""))]))
}

/// The responses of `Publish`, until there are no more answers or one of them ends the call.
pub fn streaming(answers: mpsc::Receiver<Answer>) -> Response<Body> {
    let messages = gathered(answers).map(|gathered| {
        let Results { results, places } = gathered?;
        Ok(framed(&PublishResponse { results }, places))
    });
    respond(messages.chain(tokio_stream::once(Err(Status::ok("")))))
}

/// Answers that are ready together leave in one response: where every packet has a request of its own, a message for each
/// would cost both sides more than its result.
fn gathered(answers: mpsc::Receiver<Answer>) -> impl Stream<Item = Answer> {
    futures::stream::unfold((answers, None), |(mut answers, end)| async {
        let first = match end {
            Some(status) => Err(status),
            None => answers.recv().await?,
        };
        let Results { mut results, mut places } = match first {
            Ok(results) => results,
            Err(status) => return Some((Err(status), (answers, None))),
        };
        let mut end = None;
        while results.len() < RESULTS_GATHERED && end.is_none() {
            match answers.try_recv() {
                Ok(Ok(more)) => {
                    results.extend(more.results);
                    places.join(more.places);
                }
                Ok(Err(status)) => end = Some(status),
                Err(_none_ready) => break,
            }
        }
        Some((Ok(Results { results, places }), (answers, end)))
    })
}

/// A message with its prefix, in memory that gives `places` back when it is freed.
fn framed(message: &impl Message, places: Places) -> Bytes {
    struct Held {
        bytes: Vec<u8>,
        _places: Places,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.push(0);
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    message.encode_raw(&mut bytes);
    Bytes::from_owner(Held { bytes, _places: places })
}

/// A response of these messages. The first status, which may be OK, is its end.
fn respond(messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Response<Body> {
    let frames = futures::stream::unfold(Some(Box::pin(messages)), |messages| async {
        let mut messages = messages?;
        let (frame, rest) = match messages.next().await? {
            Ok(message) => (Frame::data(message), Some(messages)),
            Err(status) => (Frame::trailers(trailers(&status)), None),
        };
        Some((Ok::<_, Status>(frame), rest))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity,gzip"));
    response
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // A message that cannot be a header is left out.
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Peer;
    use crate::unread::Unread;
    use coderelay_schemas::pb::PublishResult;
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use tonic::Code;

    fn answer(unread: &Unread, seqs: std::ops::Range<u64>) -> Results {
        let results: Vec<_> = seqs.map(|seq| PublishResult { seq, ..Default::default() }).collect();
        let places = unread.reserve(&Peer::default(), results.len() as u32).now_or_never().unwrap().unwrap();
        Results { results, places }
    }

    fn ranges(ranges: impl IntoIterator<Item = std::ops::Range<u64>>) -> Vec<Answer> {
        let unread = Unread::new(10_000);
        ranges.into_iter().map(|range| Ok(answer(&unread, range))).collect()
    }

    async fn sent(answers: Vec<Answer>) -> Vec<Result<Vec<u64>, Code>> {
        let (sender, receiver) = mpsc::channel(64);
        for answer in answers {
            sender.try_send(answer).unwrap();
        }
        drop(sender);
        let seqs = |answer: Results| answer.results.iter().map(|result| result.seq).collect();
        gathered(receiver).map(|answer| answer.map(seqs).map_err(|status| status.code())).collect().await
    }

    #[tokio::test]
    async fn answers_that_are_ready_together_leave_in_one_response_and_the_status_after_them() {
        let mut answers = ranges((0..5).map(|seq| seq..seq + 1));
        answers.push(Err(Status::unavailable("draining")));
        assert_eq!(sent(answers).await, [Ok(vec![0, 1, 2, 3, 4]), Err(Code::Unavailable)]);
        assert_eq!(sent(vec![Err(Status::unavailable("draining"))]).await, [Err(Code::Unavailable)]);
    }

    #[tokio::test]
    async fn every_result_leaves_once_and_no_response_grows_much_over_its_largest_answer() {
        let answers = ranges((0..60_u64).map(|n| n * 7..n * 7 + 7).chain([420..1420, 1420..1421]));
        let responses: Vec<Vec<u64>> = sent(answers).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(responses.concat(), (0..1421).collect::<Vec<_>>());
        assert!(responses.len() > 3 && responses.iter().all(|seqs| seqs.len() < RESULTS_GATHERED + 1000));
    }

    #[tokio::test]
    async fn an_answer_without_results_is_a_response_too() {
        assert_eq!(sent(ranges(std::iter::once(0..0))).await, [Ok(vec![])]);
    }

    #[tokio::test]
    async fn places_are_held_until_the_last_byte_is_gone() {
        let unread = Unread::new(10);
        let mut body = unary(answer(&unread, 0..7)).into_body();
        let mut bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert!(body.frame().await.is_none());
        drop((bytes.split_to(20), body));
        assert_eq!(unread.in_use(), 7);
        drop(bytes);
        assert_eq!(unread.in_use(), 0);
    }

    #[tokio::test]
    async fn an_error_ends_a_stream_with_its_own_status_alone() {
        let (sender, receiver) = mpsc::channel(2);
        sender.try_send(Err(Status::unavailable("draining"))).unwrap();
        let collected = streaming(receiver).into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers.get_all("grpc-status").iter().collect::<Vec<_>>(), ["14"]);
        drop(sender);
    }
}
