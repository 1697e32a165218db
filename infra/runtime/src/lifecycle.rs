//! From signal to exit: stop taking work, finish what was taken, leave within the grace period.

use std::future::Future;
use std::io;
use std::time::Duration;

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::HumanDuration;

/// How the process ends.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct LifecycleConfig {
    /// Time between the first SIGTERM or SIGINT and leaving at the latest: what was taken is finished meanwhile.
    /// Keep it below the orchestrator's own (Kubernetes: `terminationGracePeriodSeconds`, 30 s).
    #[garde(range(max = HumanDuration::from_secs(3600)))]
    pub grace: HumanDuration,
}

impl Default for LifecycleConfig {
    fn default() -> Self {
        Self { grace: HumanDuration::from_secs(25) }
    }
}

impl LifecycleConfig {
    /// What a service allows the work it has taken: four fifths of the grace period. The rest is for closing clients and sending the
    /// last spans.
    pub fn drain(&self) -> Duration {
        self.grace.get() * 4 / 5
    }
}

/// A token that the first SIGTERM or SIGINT cancels. The second signal ends the process at once, with 128 + its number.
///
/// # Errors
/// When the handlers cannot be installed. Must be called inside a tokio runtime.
pub fn shutdown_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        let (name, _) = next_signal(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "shutting down; a second signal leaves at once");
        shutdown.cancel();
        let (name, code) = next_signal(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "second signal, leaving at once");
        std::process::exit(code);
    });
    Ok(token)
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", 128 + SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", 128 + SignalKind::interrupt().as_raw_value()),
    }
}

/// Work was still under way when the grace period ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not finished within the grace period of {}", humantime::format_duration(*.0))]
pub struct GraceExpired(pub Duration);

/// Waits for the tracked tasks to end, no longer than the grace period. Closes the tracker; tasks are not cancelled here.
///
/// # Errors
/// [`GraceExpired`] when some are still running.
pub async fn drain(tasks: &TaskTracker, grace: Duration) -> Result<(), GraceExpired> {
    tasks.close();
    tokio::time::timeout(grace, tasks.wait()).await.map_err(|_| GraceExpired(grace))
}

/// Runs a service to its end: as long as it likes until `shutdown` is cancelled, and the grace period from then on.
///
/// # Errors
/// [`GraceExpired`] when it is still running then; it is dropped.
pub async fn run_until<T>(
    service: impl Future<Output = T>,
    shutdown: &CancellationToken,
    grace: Duration,
) -> Result<T, GraceExpired> {
    let expired = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        output = service => Ok(output),
        () = expired => Err(GraceExpired(grace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn drain_waits_for_work_and_no_longer_than_the_grace_period() {
        let tasks = TaskTracker::new();
        tasks.spawn(tokio::time::sleep(5 * SHORT));
        assert_eq!(drain(&tasks, SHORT).await, Err(GraceExpired(SHORT)));
        assert_eq!(drain(&tasks, LONG).await, Ok(()));
    }

    #[tokio::test]
    async fn the_grace_period_begins_with_the_signal() {
        let shutdown = CancellationToken::new();
        assert_eq!(run_until(tokio::time::sleep(3 * SHORT), &shutdown, SHORT).await, Ok(()));
        shutdown.cancel();
        assert_eq!(run_until(tokio::time::sleep(SHORT), &shutdown, LONG).await, Ok(()));
        assert_eq!(run_until(std::future::pending::<()>(), &shutdown, SHORT).await, Err(GraceExpired(SHORT)));
    }

    #[test]
    fn a_service_gets_less_than_the_whole_grace_period() {
        let config = LifecycleConfig::default();
        assert_eq!(config.drain(), Duration::from_secs(20));
    }
}
