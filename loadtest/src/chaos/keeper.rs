//! Starts a service again whenever it has ended, as systemd or Kubernetes would, until it is told to stop.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use coderelay_devstack::{Launch, Process};
use coderelay_runtime::clock;
use procfs::process::ProcState;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::history::History;
use super::mishap::Mishap;

/// Between a process's end and its next start.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a service may take to leave.
const GRACE: Duration = Duration::from_secs(30);
/// Between two looks whether a process has stopped itself.
const LOOK: Duration = Duration::from_millis(50);
/// Where services look for their failpoints.
const FAILPOINTS: &str = "FAILPOINTS";

/// Lets a process go on that has stopped itself, after so long.
async fn thaw(process: &Process, frozen: Option<Duration>) -> Infallible {
    if let Some(frozen) = frozen {
        while !is_stopped(process) {
            sleep(LOOK).await;
        }
        sleep(frozen).await;
        // Another fault may have killed it meanwhile.
        let _ = process.resume().await;
    }
    pending().await
}

fn is_stopped(process: &Process) -> bool {
    let status = procfs::process::Process::new(process.pid().cast_signed()).and_then(|process| process.stat());
    status.and_then(|status| status.state()).is_ok_and(|state| state == ProcState::Stopped)
}

/// One service, kept alive.
#[derive(Debug)]
pub struct Keeper {
    name: String,
    current: Arc<Mutex<Option<Arc<Process>>>>,
    stop: CancellationToken,
    /// Ends with the keeper, and its process with it: a world that broke leaves nothing behind.
    keeping: AbortOnDropHandle<Result<()>>,
}

impl Keeper {
    /// Starts it. `mishaps` befall its first lives, one after the other, and its clock jumps to the next of `clocks` with each.
    pub fn keep(launch: Launch, name: &str, mishaps: Vec<Mishap>, clocks: &[i64], history: Arc<History>) -> Self {
        let (current, stop) = (Arc::new(Mutex::new(None)), CancellationToken::new());
        let (name, shown, stopped) = (name.to_owned(), current.clone(), stop.clone());
        let called = name.clone();
        let clocks = clocks.to_vec();
        let keeping = tokio::spawn(async move {
            let (mut mishaps, mut clocks) = (mishaps.into_iter(), clocks.iter().cycle());
            while !stopped.is_cancelled() {
                let mishap = mishaps.next();
                let failpoints = mishap.as_ref().map(Mishap::failpoints);
                let ahead = clocks.next().copied().unwrap_or_default();
                let launch = launch
                    .clone()
                    .envs([(FAILPOINTS, failpoints.clone().unwrap_or_default()), (clock::VARIABLE, ahead.to_string())]);
                let process = Arc::new(Process::launch(launch)?);
                let armed = failpoints.map_or(String::new(), |failpoints| format!(", armed with {failpoints}"));
                history.note(format!("{called} starts{armed}, its clock {ahead} s ahead"));
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(process.clone());
                let status = tokio::select! {
                    status = process.wait() => status,
                    () = stopped.cancelled() => process.stop(GRACE).await?,
                    never = thaw(&process, mishap.as_ref().and_then(Mishap::frozen)) => match never {},
                };
                history.note(format!("{called} has ended: {status}"));
                if mishap.is_some_and(|mishap| mishap.is_last()) {
                    stopped.cancelled().await;
                }
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = stopped.cancelled() => {}
                }
            }
            Ok(())
        });
        Self { name, current, stop, keeping: AbortOnDropHandle::new(keeping) }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its latest process, which may have ended.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it in good order and for good.
    ///
    /// # Errors
    /// If it could not be started or ended.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.keeping.await?
    }
}
