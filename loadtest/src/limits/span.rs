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

/// Windows of warm-up at most.
const COLD: usize = 10;
/// Windows in a row that were not better by [`GROWTH`] than the best before: it is warm.
const WARM: u32 = 2;
/// A rate that grows by more than this from window to window is not warm yet.
const GROWTH: f64 = 0.05;

/// How long each entry runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// A window of what is not counted: JVMs compile, connections open, queues fill. There are as many, three to ten, as it takes until the
    /// rate no longer grows: a limit of a cold JVM would flatter whoever is held against it.
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
        let mut warmth = Warmth::default();
        for _ in 0..COLD {
            let before = work.done();
            sleep(self.warm_up).await;
            if warmth.is_warm(work.done() - before) {
                break;
            }
        }
        work.past(0).await?;
        let from = Reading::take(work)?;
        sleep(self.measured).await;
        // What is done in batches larger than the time is measured for longer.
        work.past(from.done).await?;
        Ok(from.until(&Reading::take(work)?, name))
    }
}

/// Whether a rate still grows.
#[derive(Debug, Default)]
struct Warmth {
    best: u64,
    steady: u32,
}

impl Warmth {
    /// Takes what was done in the next window.
    fn is_warm(&mut self, done: u64) -> bool {
        let grows = done as f64 > self.best as f64 * (1.0 + GROWTH);
        self.steady = if grows || done == 0 { 0 } else { self.steady + 1 };
        self.best = self.best.max(done);
        self.steady >= WARM
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

    #[test]
    fn it_is_warm_when_the_rate_no_longer_grows() {
        let windows = |done: &[u64]| {
            let mut warmth = Warmth::default();
            done.iter().position(|done| warmth.is_warm(*done))
        };
        assert_eq!(windows(&[100, 101, 99]), Some(2));
        assert_eq!(
            windows(&[0, 0, 0, 10, 20, 15, 40, 41, 40]),
            Some(8),
            "nothing done, growth and one dip are not warmth"
        );
        assert_eq!(windows(&[10, 20, 30, 40, 50]), None);
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
