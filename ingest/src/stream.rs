//! One Publish stream: reads requests as long as there is room for their answers.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;

use crate::frames::{Frames, gone, idle};
use crate::intake::{Caller, Intake};
use crate::metrics::METRICS;
use crate::outcome::Failure;
use crate::reply::{Answer, Slot};
use crate::wire::Call;

/// A Publish stream. Its answers' channel has one place per request that may be unanswered.
pub struct Stream {
    /// What takes the requests.
    pub intake: Arc<Intake>,
    /// Where they come from.
    pub frames: Frames,
    /// Where the answers go.
    pub answers: Sender<Answer>,
    /// Who sends them.
    pub caller: Caller,
    /// How long the client may leave its answers unread.
    pub idle_timeout: Duration,
    /// When the stream must end.
    pub until: Option<Instant>,
}

impl Stream {
    /// Serves the stream to its end: OK after the last answer if the client closed its side, else a status that says why,
    /// also after the last answer of what was taken.
    pub async fn run(mut self) {
        let _open = METRICS.streams.enter();
        let Err(failure) = self.read().await else { return };
        METRICS.call_failed(failure.reason);
        // Every place is free only when every answer has been handed over.
        let places = self.answers.max_capacity();
        if let Ok(mut places) = self.answers.reserve_many(places).await
            && let Some(place) = places.next()
        {
            place.send(Err(failure.into()));
        }
    }

    async fn read(&mut self) -> Result<(), Failure> {
        let Self { intake, frames, answers, caller, idle_timeout, until } = self;
        // Made once: to register with a token or a timer for every request costs as much as to read a small one.
        let mut ended = pin!(ended(intake, *until));
        let mut closed = pin!(answers.closed());
        loop {
            let slot = tokio::select! {
                biased;
                failure = &mut ended => return Err(failure),
                slot = slot(answers, *idle_timeout) => slot?,
            };
            let frame = tokio::select! {
                biased;
                failure = &mut ended => return Err(failure),
                () = &mut closed => return Err(gone()),
                frame = frames.next() => frame?,
            };
            match frame {
                Some(frame) => intake.take(Call::Publish, frame, slot, caller).await?,
                None => return Ok(()),
            }
        }
    }
}

/// A place for the next answer. Until there is one nothing is read: a client that does not take its answers is held by flow
/// control.
async fn slot(answers: &Sender<Answer>, patience: Duration) -> Result<Slot, Failure> {
    match answers.clone().try_reserve_owned() {
        Ok(slot) => Ok(slot),
        Err(TrySendError::Closed(_)) => Err(gone()),
        Err(TrySendError::Full(answers)) => match timeout(patience, answers.reserve_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_closed)) => Err(gone()),
            Err(_elapsed) => Err(idle()),
        },
    }
}

/// Completes when the server wants the stream to end.
async fn ended(intake: &Intake, until: Option<Instant>) -> Failure {
    let too_old = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = intake.draining.cancelled() => intake.leaving(),
        () = too_old => {
            let message = "the connection has reached its age: open the stream again on a new one";
            Failure::transient(Code::Unavailable, "CONNECTION_AGE", message, intake.retry_after)
        }
    }
}
