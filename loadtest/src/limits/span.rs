//! Measures work that goes on until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use super::Limit;

/// How long work may take to get anything done at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long each entry runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Not counted: JVMs compile, connections open, queues fill.
    pub warm_up: Duration,
    /// Counted.
    pub measured: Duration,
}

/// What work and its observer share: how much is done, and whether to go on.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    done: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl Work {
    pub(super) fn add(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until more than `done` is done.
    async fn past(&self, done: u64) -> Result<()> {
        let begun = Instant::now();
        while self.done() <= done {
            ensure!(begun.elapsed() < PATIENCE, "nothing was done within {PATIENCE:?}");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

impl Span {
    /// Starts `work`, measures it once it is warm, and waits until it has stopped.
    pub(super) async fn measure<F>(self, name: &'static str, work: impl FnOnce(Work) -> F) -> Result<Limit>
    where
        F: Future<Output = Result<()>>,
    {
        let shared = Work::default();
        let observing = async {
            let limit = self.observe(name, &shared).await;
            shared.stop();
            limit
        };
        let working = async {
            let ended = work(shared.clone()).await;
            // Also when one of its threads has failed: the others must not go on for ever.
            shared.stop();
            ended
        };
        Ok(tokio::try_join!(observing, working)?.0)
    }

    async fn observe(self, name: &'static str, work: &Work) -> Result<Limit> {
        sleep(self.warm_up).await;
        work.past(0).await?;
        let from = Reading::take(work)?;
        sleep(self.measured).await;
        // What is done in batches larger than the time is measured for longer.
        work.past(from.done).await?;
        Ok(from.until(&Reading::take(work)?, name))
    }
}

/// Time, CPU time and work done at one moment.
struct Reading {
    at: Instant,
    cpu: Duration,
    done: u64,
}

impl Reading {
    fn take(work: &Work) -> Result<Self> {
        let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into();
        Ok(Self { at: Instant::now(), cpu, done: work.done() })
    }

    fn until(&self, later: &Self, name: &'static str) -> Limit {
        let done = (later.done - self.done) as f64;
        let cpu = later.cpu.saturating_sub(self.cpu).as_secs_f64();
        Limit {
            name,
            per_second: done / (later.at - self.at).as_secs_f64(),
            cpu_seconds_per_100k: if done > 0.0 { cpu * 1e5 / done } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Span = Span { warm_up: Duration::from_millis(10), measured: Duration::from_millis(50) };

    #[test]
    fn a_rate_is_what_was_done_between_two_readings() {
        let from = Reading { at: Instant::now(), cpu: Duration::from_secs(1), done: 1000 };
        let to = Reading { at: from.at + Duration::from_secs(2), cpu: Duration::from_secs(4), done: 301_000 };
        let limit = from.until(&to, "x");
        assert!((limit.per_second - 150_000.0).abs() < 1e-6);
        assert!((limit.cpu_seconds_per_100k - 1.0).abs() < 1e-9);
        assert!(from.until(&from, "x").cpu_seconds_per_100k.abs() < 1e-9, "nothing done costs nothing");
    }

    #[tokio::test]
    async fn what_is_done_before_it_is_warm_does_not_count() {
        let work = |work: Work| async move {
            work.add(1_000_000);
            while work.goes_on() {
                sleep(Duration::from_millis(1)).await;
                work.add(1);
            }
            Ok(())
        };
        let limit = SHORT.measure("x", work).await.unwrap();
        assert!(limit.per_second > 0.0 && limit.per_second < 2000.0, "{limit}");
    }

    #[tokio::test]
    async fn failed_work_ends_the_measurement_and_its_siblings() {
        let work = |work: Work| async move {
            let sibling = work.clone();
            tokio::task::spawn_blocking(move || while sibling.goes_on() {});
            anyhow::bail!("no broker")
        };
        let error = SHORT.measure("x", work).await.unwrap_err();
        assert_eq!(error.to_string(), "no broker");
    }
}
