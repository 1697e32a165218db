//! The client side of `Publish`: one stream at a time, a bounded window, retries, reconnection, failover.

use std::time::Duration;

use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::{PublishRequest, PublishResponse};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::endpoints::Endpoints;
use crate::window::{Parcel, Receipt, Window};

/// What an acknowledgement is to promise: the call's metadata `x-ack`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Ack {
    /// That the region which takes a packet has it
    Local,
    /// That the other region has it too
    Mirrored,
}

impl Ack {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Mirrored => "mirrored",
        }
    }
}

/// What happens on the way.
pub(crate) enum Event {
    /// A packet has its final outcome, from the endpoint of this index.
    Settled(usize, Receipt),
    /// The stream broke; everything without an outcome is sent again after a pause.
    Reconnecting(Status),
    /// The same, and it is sent to another endpoint.
    Moved {
        /// The endpoint that failed.
        from: String,
        /// The one that is used next.
        to: String,
        /// Why.
        error: Status,
    },
}

/// Publishing that was given up, with packets that have no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GaveUp {
    /// Another try would not do better, at any endpoint.
    #[error("ingest refuses the call: {0}")]
    Refused(String),
    /// Nothing was settled for so long, reconnections included.
    #[error("ingest acknowledged nothing for {patience:?}, gave up: {errors}")]
    Silent {
        /// How long.
        patience: Duration,
        /// Every endpoint and the last thing that went wrong there.
        errors: String,
    },
}

/// Publishes every parcel of a channel until it is closed and each has its outcome.
pub(crate) struct Publisher {
    endpoints: Endpoints,
    /// One an endpoint.
    clients: Vec<IngestClient<Channel>>,
    window: Window,
    /// `None`: the deployment's default.
    ack: Option<Ack>,
    patience: Duration,
    /// When a packet was last settled, or the window last was empty.
    progress: Instant,
    /// Whether more parcels may come.
    open: bool,
}

impl Publisher {
    /// `channels` are endpoints by their address, in the order of preference. `patience` is how long all of them together
    /// may go without settling any packet, reconnections included.
    pub(crate) fn new(channels: Vec<(String, Channel)>, ack: Option<Ack>, patience: Duration) -> Self {
        let now = Instant::now();
        let (addresses, channels): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        Self {
            endpoints: Endpoints::new(addresses, now),
            clients: channels.into_iter().map(IngestClient::new).collect(),
            window: Window::default(),
            ack,
            patience,
            progress: now,
            open: true,
        }
    }

    /// Runs to the end. A packet that is refused is an event; an error means that the rest has no outcome.
    pub(crate) async fn run(
        mut self,
        mut parcels: mpsc::Receiver<Parcel>,
        mut report: impl FnMut(Event),
    ) -> Result<(), GaveUp> {
        while let Err(status) = self.stream(&mut parcels, &mut report).await {
            let now = Instant::now();
            self.window.lost(now);
            if !self.open && self.window.unsettled() == 0 {
                break;
            }
            if self.window.unsettled() == 0 {
                // Whoever feeds it is slow, not ingest.
                self.progress = now;
            }
            let from = self.endpoints.current();
            let Some(due) = self.endpoints.failed(status.clone(), now) else {
                return Err(GaveUp::Refused(self.endpoints.errors()));
            };
            let end = self.progress + self.patience;
            if now >= end {
                return Err(GaveUp::Silent { patience: self.patience, errors: self.endpoints.errors() });
            }
            report(self.going_on(from, status, now));
            sleep_until(due.min(end)).await;
        }
        Ok(())
    }

    /// A stream broke at `from`; the endpoint to use next has been chosen.
    fn going_on(&mut self, from: usize, error: Status, now: Instant) -> Event {
        let to = self.endpoints.current();
        if to == from {
            return Event::Reconnecting(error);
        }
        self.window.moved(now);
        let address = |index| self.endpoints.address(index).to_owned();
        Event::Moved { from: address(from), to: address(to), error }
    }

    /// One stream, until everything is settled or it breaks.
    async fn stream(
        &mut self,
        parcels: &mut mpsc::Receiver<Parcel>,
        report: &mut impl FnMut(Event),
    ) -> Result<(), Status> {
        let (requests, queue) = mpsc::channel(4);
        let (mut requests, mut writable) = (Some(requests), true);
        let mut client = self.clients[self.endpoints.current()].clone();
        // A server may send its headers with its first answer only: the call and its answers are one stream here.
        let mut call = Request::new(ReceiverStream::new(queue));
        if let Some(ack) = self.ack {
            call.metadata_mut().insert("x-ack", MetadataValue::from_static(ack.as_str()));
        }
        let call = async move { client.publish(call).await.map(Response::into_inner) };
        let mut responses = stream::once(call).try_flatten().boxed();

        let opened = Instant::now();
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
            let silent = self.progress.max(opened) + self.endpoints.silence(self.patience);
            let silent = silent.min(self.progress + self.patience);
            tokio::select! {
                response = responses.next() => match response {
                    Some(response) => self.settle(response?, report)?,
                    None if requests.is_none() => return Ok(()),
                    None => return Err(Status::unavailable("ingest ended the stream")),
                },
                permit = reserve(requests.as_ref()), if ready && writable => match permit {
                    Ok(permit) => if let Some(request) = self.window.next_request(now) {
                        permit.send(request);
                    },
                    // What ingest answered before it ended the stream, and why it did, is still to be read.
                    Err(_) => writable = false,
                },
                count = parcels.recv_many(&mut fresh, room), if room > 0 => {
                    self.open = count > 0;
                    if self.window.unsettled() == 0 {
                        self.progress = now;
                    }
                    self.window.admit(fresh.drain(..), now);
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() && !ready => {}
                () = sleep_until(silent), if self.window.unsettled() > 0 || !self.open => {
                    let error = self.endpoints.error().cloned();
                    return Err(error.unwrap_or_else(|| Status::deadline_exceeded("no answer")));
                }
            }
        }
    }

    /// Takes the results of a response; an error where another endpoint is to be asked for those without an outcome.
    fn settle(&mut self, response: PublishResponse, report: &mut impl FnMut(Event)) -> Result<(), Status> {
        let now = Instant::now();
        for result in response.results {
            if let Some(receipt) = self.window.settle(result, now) {
                self.progress = now;
                self.endpoints.settled();
                report(Event::Settled(self.endpoints.current(), receipt));
            }
        }
        match self.window.stuck() {
            Some(error) if self.endpoints.has_others() => Err(error),
            _ => Ok(()),
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
