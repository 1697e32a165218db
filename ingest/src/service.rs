//! The gRPC methods. Written by hand where tonic would generate them, for two reasons: packets are decoded one by one
//! ([`crate::wire`]), and messages are charged to the budget before they are buffered ([`crate::frames`]).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use coderelay_schemas::pb::{PublishBatchResponse, PublishResponse};
use futures::{Stream, StreamExt};
use http::{HeaderValue, Request, Response, header};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codec::{EncodeBody, SingleMessageCompressionOverride};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_prost::ProstEncoder;
use tower::Service;

use crate::ack::Ack;
use crate::frames::{FrameLimits, Frames, gone};
use crate::intake::Intake;
use crate::metrics::METRICS;
use crate::outcome::Failure;
use crate::reply::Answer;
use crate::stream;
use crate::trace::{Origin, REQUEST_ID};
use crate::wire::Call;

/// Results from which on a response is not added to: clients refuse large messages, gRPC's own limit is 4 MiB.
const RESULTS_GATHERED: usize = 100;

/// `coderelay.v1.Ingest`.
#[derive(Debug, Clone)]
pub struct IngestService {
    intake: Arc<Intake>,
    /// Calls that may be open at one time.
    calls: Arc<Semaphore>,
    limits: CallLimits,
}

/// Bounds of one call.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Of its messages.
    pub frame: FrameLimits,
    /// Requests of one stream whose answers the client has not taken.
    pub unanswered: usize,
    /// How long a stream may last.
    pub age: Option<Duration>,
}

impl IngestService {
    /// A service that lets `max_calls` calls be open at one time.
    pub fn new(intake: Arc<Intake>, max_calls: usize, limits: CallLimits) -> Self {
        Self { intake, calls: Arc::new(Semaphore::new(max_calls)), limits }
    }

    async fn call_method(self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let call = match parts.uri.path() {
            "/coderelay.v1.Ingest/Publish" => Call::Publish,
            "/coderelay.v1.Ingest/PublishBatch" => Call::PublishBatch,
            unknown => return Status::unimplemented(format!("there is no method {unknown}")).into_http(),
        };
        let origin = Origin::of(call, &parts.headers);
        let request_id = origin.request_id.clone();
        let admission = Arc::clone(&self.intake.admission);
        let opened = self.open().and_then(|permit| {
            let ack = Ack::of(&parts.headers, self.intake.default_ack, self.intake.mirror.is_some())?;
            let frames = Frames::new(&parts.headers, body, admission, self.limits.frame)?;
            Ok((permit, frames, ack))
        });
        let answered = match (call, opened) {
            (Call::Publish, Ok((permit, frames, ack))) => Ok(self.publish(frames, origin, ack, permit)),
            (Call::PublishBatch, Ok((_permit, frames, ack))) => self.publish_batch(frames, origin, ack).await,
            (_, Err(refused)) => {
                METRICS.call_failed(refused.reason);
                Err(refused.into())
            }
        };
        let mut response = answered.unwrap_or_else(Status::into_http);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    fn open(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if self.intake.draining.is_cancelled() {
            return Err(self.intake.leaving());
        }
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_full| {
            let message = "too many calls are open: send more packets on fewer streams";
            Failure::transient(Code::ResourceExhausted, "TOO_MANY_CALLS", message, self.intake.retry_after)
        })
    }

    fn publish(self, frames: Frames, origin: Origin, ack: Ack, permit: OwnedSemaphorePermit) -> Response<Body> {
        let (answers, answered) = mpsc::channel(self.limits.unanswered);
        let stream = stream::Stream {
            intake: Arc::clone(&self.intake),
            frames,
            answers,
            origin,
            ack,
            idle_timeout: self.limits.frame.idle_timeout,
            until: self.limits.age.map(|age| Instant::now() + age),
        };
        // Not bound to the response: a request that was taken is worked to its end even if its client has left.
        self.intake.calls.spawn(stream.run());
        let token = (self.intake.calls.token(), permit);
        let responses = responses(answered).map(move |response| {
            let _open_until_the_last = &token;
            response
        });
        respond(responses)
    }

    async fn publish_batch(self, mut frames: Frames, origin: Origin, ack: Ack) -> Result<Response<Body>, Status> {
        let _token = self.intake.calls.token();
        let taken = async {
            let frame = tokio::select! {
                biased;
                () = self.intake.draining.cancelled() => return Err(self.intake.leaving()),
                frame = frames.next() => frame?.ok_or_else(|| {
                    Failure::permanent(Code::InvalidArgument, "REQUEST_MISSING", "the call has no request message")
                })?,
            };
            let (answers, mut answered) = mpsc::channel::<Answer>(1);
            let slot = answers.try_reserve_owned().map_err(|_| gone())?;
            self.intake.take(Call::PublishBatch, frame, slot, &origin, ack).await?;
            answered.recv().await.ok_or_else(gone)
        };
        match taken.await {
            Ok(answer) => {
                let response = PublishBatchResponse { results: answer? };
                Ok(respond(tokio_stream::once(Ok(response))))
            }
            Err(failure) => {
                METRICS.call_failed(failure.reason);
                Err(failure.into())
            }
        }
    }
}

/// Answers that are ready together leave in one response: where every packet has a request of its own, a message for each
/// would cost both sides more than its result.
fn responses(answers: mpsc::Receiver<Answer>) -> impl Stream<Item = Result<PublishResponse, Status>> {
    futures::stream::unfold((answers, None), |(mut answers, end)| async {
        let first = match end {
            Some(status) => Err(status),
            None => answers.recv().await?,
        };
        let mut results = match first {
            Ok(results) => results,
            Err(status) => return Some((Err(status), (answers, None))),
        };
        let mut end = None;
        while results.len() < RESULTS_GATHERED && end.is_none() {
            match answers.try_recv() {
                Ok(Ok(more)) => results.extend(more),
                Ok(Err(status)) => end = Some(status),
                Err(_none_ready) => break,
            }
        }
        Some((Ok(PublishResponse { results }), (answers, end)))
    })
}

/// A response as gRPC frames it. Never compressed: it is mostly ids.
fn respond<M: Message + 'static>(messages: impl Stream<Item = Result<M, Status>> + Send + 'static) -> Response<Body> {
    let encoder = ProstEncoder::<M>::default();
    let body = EncodeBody::new_server(encoder, messages, None, SingleMessageCompressionOverride::default(), None);
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity,gzip"));
    response
}

impl NamedService for IngestService {
    const NAME: &'static str = "coderelay.v1.Ingest";
}

impl Service<Request<Body>> for IngestService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.call_method(request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coderelay_schemas::pb::PublishResult;

    fn results(seqs: std::ops::Range<u64>) -> Vec<PublishResult> {
        seqs.map(|seq| PublishResult { seq, ..Default::default() }).collect()
    }

    async fn sent(answers: impl IntoIterator<Item = Answer>) -> Vec<Result<Vec<u64>, Code>> {
        let (sender, receiver) = mpsc::channel(64);
        for answer in answers {
            sender.try_send(answer).unwrap();
        }
        drop(sender);
        let seqs = |response: PublishResponse| response.results.iter().map(|result| result.seq).collect();
        responses(receiver).map(|response| response.map(seqs).map_err(|status| status.code())).collect().await
    }

    #[tokio::test]
    async fn answers_that_are_ready_together_leave_in_one_response_and_the_status_after_them() {
        let answers = (0..5).map(|seq| Ok(results(seq..seq + 1))).chain([Err(Status::unavailable("draining"))]);
        assert_eq!(sent(answers).await, [Ok(vec![0, 1, 2, 3, 4]), Err(Code::Unavailable)]);
        assert_eq!(sent([Err(Status::unavailable("draining"))]).await, [Err(Code::Unavailable)]);
    }

    #[tokio::test]
    async fn every_result_leaves_once_and_no_response_grows_much_over_its_largest_answer() {
        let ranges = (0..60_u64).map(|n| n * 7..n * 7 + 7).chain([420..1420, 1420..1421]);
        let responses: Vec<Vec<u64>> =
            sent(ranges.map(|range| Ok(results(range)))).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(responses.concat(), (0..1421).collect::<Vec<_>>());
        assert!(responses.len() > 3 && responses.iter().all(|seqs| seqs.len() < RESULTS_GATHERED + 1000));
    }

    #[tokio::test]
    async fn an_answer_without_results_is_a_response_too() {
        assert_eq!(sent([Ok(results(0..0))]).await, [Ok(vec![])]);
    }
}
