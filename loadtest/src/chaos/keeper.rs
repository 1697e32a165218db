//! Starts a service again whenever it has ended, as systemd or Kubernetes would, until it is told to stop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use coderelay_devstack::{Launch, Process};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::history::History;
use super::plan::Mishap;

/// Between a process's end and its next start.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a service may take to leave.
const GRACE: Duration = Duration::from_secs(30);
/// Where services look for their failpoints.
const FAILPOINTS: &str = "FAILPOINTS";

/// In the grammar of the `fail` crate.
fn failpoints(Mishap { edge, after, stall }: &Mishap) -> String {
    match stall {
        None => format!("{edge}={after}*off->return"),
        Some(stall) => format!("{edge}={after}*off->1*sleep({})", stall.as_millis()),
    }
}

/// One service, kept alive.
#[derive(Debug)]
pub struct Keeper {
    name: String,
    current: Arc<Mutex<Option<Arc<Process>>>>,
    stop: CancellationToken,
    keeping: JoinHandle<Result<()>>,
}

impl Keeper {
    /// Starts it. `mishaps` befall its first lives, one after the other.
    pub fn keep(launch: Launch, name: &str, mishaps: Vec<Mishap>, history: Arc<History>) -> Self {
        let (current, stop) = (Arc::new(Mutex::new(None)), CancellationToken::new());
        let (name, shown, stopped) = (name.to_owned(), current.clone(), stop.clone());
        let called = name.clone();
        let keeping = tokio::spawn(async move {
            let mut mishaps = mishaps.into_iter();
            while !stopped.is_cancelled() {
                let failpoints = mishaps.next().map(|mishap| failpoints(&mishap));
                let launch = launch.clone().envs([(FAILPOINTS, failpoints.clone().unwrap_or_default())]);
                let process = Arc::new(Process::launch(launch)?);
                let armed = failpoints.map_or(String::new(), |failpoints| format!(", armed with {failpoints}"));
                history.note(format!("{called} starts{armed}"));
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(process.clone());
                let status = tokio::select! {
                    status = process.wait() => status,
                    () = stopped.cancelled() => process.stop(GRACE).await?,
                };
                history.note(format!("{called} has ended: {status}"));
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = stopped.cancelled() => {}
                }
            }
            Ok(())
        });
        Self { name, current, stop, keeping }
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
