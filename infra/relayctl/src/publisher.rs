//! The client side of `Publish`: one stream at a time, a bounded window, retries, reconnection.

use std::time::Duration;

use backon::ExponentialBackoff;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::{PublishRequest, PublishResponse};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::window::{Parcel, Receipt, Window, backoff};

/// What happens on the way.
pub(crate) enum Event {
    /// A packet has its final outcome.
    Settled(Receipt),
    /// The stream broke; everything without an outcome is sent again after a pause.
    Reconnecting(Status),
}

/// Publishing that was given up, with packets that have no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GaveUp {
    /// Another try would not do better.
    #[error("ingest refuses the call: {} ({:?})", .0.message(), .0.code())]
    Refused(Status),
    /// Nothing was settled for so long, reconnections included.
    #[error("ingest acknowledged nothing for {patience:?}, gave up: {}", .last.message())]
    Silent {
        /// How long.
        patience: Duration,
        /// The last thing that went wrong.
        last: Status,
    },
}

/// Publishes every parcel of a channel until it is closed and each has its outcome.
pub(crate) struct Publisher {
    client: IngestClient<Channel>,
    window: Window,
    patience: Duration,
    /// When a packet was last settled, or the window last was empty.
    progress: Instant,
    pause: ExponentialBackoff,
    /// Whether more parcels may come.
    open: bool,
    /// What went wrong since.
    last: Option<Status>,
}

impl Publisher {
    /// `patience` is how long ingest may go without settling any packet, reconnections included.
    pub(crate) fn new(channel: Channel, patience: Duration) -> Self {
        Self {
            client: IngestClient::new(channel),
            window: Window::default(),
            patience,
            progress: Instant::now(),
            pause: backoff(),
            open: true,
            last: None,
        }
    }

    /// Runs to the end. A packet that is refused is an event; an error means that the rest has no outcome.
    pub(crate) async fn run(
        mut self,
        mut parcels: mpsc::Receiver<Parcel>,
        mut report: impl FnMut(Event),
    ) -> Result<(), GaveUp> {
        while let Err(status) = self.stream(&mut parcels, &mut report).await {
            self.window.lost(Instant::now());
            if !self.open && self.window.unsettled() == 0 {
                break;
            }
            if !retriable(status.code()) {
                return Err(GaveUp::Refused(status));
            }
            let left = self.patience.saturating_sub(self.progress.elapsed());
            if left.is_zero() {
                return Err(GaveUp::Silent { patience: self.patience, last: status });
            }
            let pause = self.pause.next().unwrap_or_default().min(left);
            self.last = Some(status.clone());
            report(Event::Reconnecting(status));
            sleep(pause).await;
        }
        Ok(())
    }

    /// One stream, until everything is settled or it breaks.
    async fn stream(
        &mut self,
        parcels: &mut mpsc::Receiver<Parcel>,
        report: &mut impl FnMut(Event),
    ) -> Result<(), Status> {
        let (requests, queue) = mpsc::channel(4);
        let mut requests = Some(requests);
        let mut client = self.client.clone();
        // A server may send its headers with its first answer only: the call and its answers are one stream here.
        let call = async move { client.publish(ReceiverStream::new(queue)).await.map(Response::into_inner) };
        let mut responses = stream::once(call).try_flatten().boxed();

        let mut fresh = Vec::new();
        loop {
            if !self.open && self.window.unsettled() == 0 {
                // Half-close; the server then ends the stream.
                requests = None;
            }
            let now = Instant::now();
            let room = if self.open { self.window.room() } else { 0 };
            let due = self.window.next_due();
            let ready = due.is_some_and(|due| due <= now);
            tokio::select! {
                response = responses.next() => match response {
                    Some(response) => self.settle(response?, report),
                    None if requests.is_none() => return Ok(()),
                    None => return Err(Status::unavailable("ingest ended the stream")),
                },
                permit = reserve(requests.as_ref()), if ready => {
                    let permit = permit.map_err(|_| Status::unavailable("the stream broke"))?;
                    if let Some(request) = self.window.next_request(now) {
                        permit.send(request);
                    }
                }
                count = parcels.recv_many(&mut fresh, room), if room > 0 => {
                    self.open = count > 0;
                    if self.window.unsettled() == 0 {
                        self.progress = now;
                    }
                    self.window.admit(fresh.drain(..), now);
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() && !ready => {}
                () = sleep_until(self.progress + self.patience), if self.window.unsettled() > 0 || !self.open => {
                    return Err(self.last.take().unwrap_or_else(|| Status::deadline_exceeded("no answer")));
                }
            }
        }
    }

    fn settle(&mut self, response: PublishResponse, report: &mut impl FnMut(Event)) {
        let now = Instant::now();
        for result in response.results {
            if let Some(receipt) = self.window.settle(result, now) {
                self.progress = now;
                self.pause = backoff();
                self.last = None;
                report(Event::Settled(receipt));
            }
        }
    }
}

async fn reserve(
    requests: Option<&mpsc::Sender<PublishRequest>>,
) -> Result<mpsc::Permit<'_, PublishRequest>, mpsc::error::SendError<()>> {
    match requests {
        Some(requests) => requests.reserve().await,
        None => std::future::pending().await,
    }
}

/// Whether another stream may do better: not where ingest refuses the call itself.
fn retriable(code: Code) -> bool {
    !matches!(
        code,
        Code::Unimplemented
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::NotFound
    )
}
