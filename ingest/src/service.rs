//! The gRPC methods. Written by hand where tonic would generate them, for two reasons: packets are decoded one by one
//! ([`crate::wire`]), and messages are charged to the budget before they are buffered ([`crate::frames`]).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use crate::ack::Ack;
use crate::frames::{FrameLimits, Frames, gone};
use crate::intake::{Caller, Intake};
use crate::metrics::METRICS;
use crate::outcome::Failure;
use crate::peer::Peer;
use crate::reply::Answer;
use crate::trace::{Origin, REQUEST_ID};
use crate::wire::Call;
use crate::{response, stream};

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
        let peer = parts.extensions.get::<Peer>().cloned().unwrap_or_default();
        let admission = Arc::clone(&self.intake.admission);
        let opened = self.open().and_then(|permit| {
            let ack = Ack::of(&parts.headers, self.intake.default_ack, self.intake.mirror.is_some())?;
            let frames = Frames::new(&parts.headers, body, admission, peer.clone(), self.limits.frame)?;
            Ok((permit, frames, Caller { origin, ack, peer }))
        });
        let answered = match (call, opened) {
            (Call::Publish, Ok((permit, frames, caller))) => Ok(self.publish(frames, caller, permit)),
            (Call::PublishBatch, Ok((_permit, frames, caller))) => self.publish_batch(frames, caller).await,
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

    fn publish(self, frames: Frames, caller: Caller, permit: OwnedSemaphorePermit) -> Response<Body> {
        let (answers, answered) = mpsc::channel(self.limits.unanswered);
        let stream = stream::Stream {
            intake: Arc::clone(&self.intake),
            frames,
            answers,
            caller,
            idle_timeout: self.limits.frame.idle_timeout,
            until: self.limits.age.map(|age| Instant::now() + age),
        };
        // Not bound to the response: a request that was taken is worked to its end even if its client has left.
        self.intake.calls.spawn(stream.run());
        let token = (self.intake.calls.token(), permit);
        response::streaming(answered).map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _open_until_the_last = &token;
                frame
            }))
        })
    }

    async fn publish_batch(self, mut frames: Frames, caller: Caller) -> Result<Response<Body>, Status> {
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
            self.intake.take(Call::PublishBatch, frame, slot, &caller).await?;
            answered.recv().await.ok_or_else(gone)
        };
        match taken.await {
            Ok(answer) => Ok(response::unary(answer?)),
            Err(failure) => {
                METRICS.call_failed(failure.reason);
                Err(failure.into())
            }
        }
    }
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
