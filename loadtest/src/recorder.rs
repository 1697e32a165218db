//! What a run counts while it goes on: distributions, interval by interval and phase by phase, and packets by what became of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::latency::Latency;
use crate::summary::latency;

/// A distribution that a run keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the intended time to the acknowledgement.
    Ack,
    /// From sending to the acknowledgement.
    Service,
    /// From the intended time to a reader of the deduped topic.
    Topic,
    /// From the intended time until a query finds the row.
    Cql,
    /// From the acknowledgement to a reader of the deduped topic in another region.
    Mirror,
    /// How late the generator was.
    Slip,
}

impl Kind {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 6] = [Self::Ack, Self::Service, Self::Topic, Self::Cql, Self::Mirror, Self::Slip];

    /// Its name in the summary, and of its `.hlog`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ack => latency::ACK,
            Self::Service => latency::SERVICE,
            Self::Topic => latency::TOPIC,
            Self::Cql => latency::CQL,
            Self::Mirror => latency::MIRROR,
            Self::Slip => "slip",
        }
    }
}

/// Counts everything; shared by all tasks of a run.
#[derive(Debug)]
pub struct Recorder {
    distributions: Vec<Mutex<Distribution>>,
    /// Packets sent for the first time.
    pub sent: AtomicU64,
    /// Packets acknowledged.
    pub acknowledged: AtomicU64,
    /// The same, the warm-up included.
    pub acknowledged_in_all: AtomicU64,
    /// Records seen in the deduped topic.
    pub delivered: AtomicU64,
    /// Packets given up.
    pub failed: AtomicU64,
    /// Packets sent again.
    pub retried: AtomicU64,
    /// Packets of the plan that repeat earlier ones.
    pub repeats: AtomicU64,
    /// Packets sent before the measured part.
    pub warm_up: AtomicU64,
    gap: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug)]
struct Distribution {
    interval: Latency,
    total: Latency,
    /// One for each phase, where there are several.
    phases: Vec<Latency>,
}

impl Recorder {
    /// A recorder for a plan of so many phases.
    ///
    /// # Errors
    /// Only if the histograms' constant bounds were invalid.
    pub fn new(phases: usize) -> Result<Self> {
        let distribution = |kind| {
            let by_phase = matches!(kind, Kind::Ack | Kind::Topic | Kind::Slip) && phases > 1;
            let phases = (0..if by_phase { phases } else { 0 }).map(|_| Latency::new()).collect::<Result<_>>()?;
            Ok(Mutex::new(Distribution { interval: Latency::new()?, total: Latency::new()?, phases }))
        };
        Ok(Self {
            distributions: Kind::ALL.into_iter().map(distribution).collect::<Result<_>>()?,
            sent: AtomicU64::default(),
            acknowledged: AtomicU64::default(),
            acknowledged_in_all: AtomicU64::default(),
            delivered: AtomicU64::default(),
            failed: AtomicU64::default(),
            retried: AtomicU64::default(),
            repeats: AtomicU64::default(),
            warm_up: AtomicU64::default(),
            gap: AtomicU64::default(),
            errors: Mutex::default(),
        })
    }

    /// Counts `count` events of a phase that each took `took`.
    pub fn record(&self, kind: Kind, phase: usize, took: Duration, count: u64) {
        let mut distribution = self.distribution(kind);
        distribution.interval.record(took, count);
        if let Some(phase) = distribution.phases.get_mut(phase) {
            phase.record(took, count);
        }
    }

    /// Counts answers that were not `committed`.
    pub fn error(&self, code: &str, packets: u64) {
        if packets > 0 {
            *lock(&self.errors).entry(code.to_owned()).or_default() += packets;
        }
    }

    /// Answers that were not `committed`, by code and reason.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        lock(&self.errors).clone()
    }

    /// A stream that had broken has its first acknowledgement, so long after the last result before.
    pub fn gap(&self, gap: Duration) {
        self.gap.fetch_max(gap.as_micros() as u64, Ordering::Relaxed);
    }

    /// The longest of those; `None` if no stream has broken.
    pub fn longest_gap(&self) -> Option<Duration> {
        let gap = read(&self.gap);
        (gap > 0).then(|| Duration::from_micros(gap))
    }

    /// What was recorded since the last call.
    ///
    /// # Errors
    /// Only if histograms had different bounds.
    pub fn next_interval(&self, kind: Kind) -> Result<Latency> {
        let mut distribution = self.distribution(kind);
        let interval = distribution.interval.clone();
        distribution.total.merge(&interval)?;
        distribution.interval.clear();
        Ok(interval)
    }

    /// Forgets the distributions, not the counts: what was recorded before the measured part.
    pub fn discard(&self) {
        for kind in Kind::ALL {
            let mut distribution = self.distribution(kind);
            distribution.interval.clear();
            distribution.total.clear();
        }
    }

    /// Everything up to the last interval.
    pub fn total(&self, kind: Kind) -> Latency {
        self.distribution(kind).total.clone()
    }

    /// What was recorded of a phase; `None` where there is only one.
    pub fn phase(&self, kind: Kind, phase: usize) -> Option<Latency> {
        self.distribution(kind).phases.get(phase).cloned()
    }

    fn distribution(&self, kind: Kind) -> MutexGuard<'_, Distribution> {
        lock(&self.distributions[kind as usize])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, packets: u64) {
    count.fetch_add(packets, Ordering::Relaxed);
}

/// Reads a count.
pub(crate) fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_of_the_intervals_and_phases_are_kept_apart() {
        let recorder = Recorder::new(2).unwrap();
        for (phase, ms) in [(0, 10), (1, 200), (1, 300)] {
            recorder.record(Kind::Ack, phase, Duration::from_millis(ms), 5);
            assert_eq!(recorder.next_interval(Kind::Ack).unwrap().percentiles().count, 5);
        }
        assert_eq!(recorder.next_interval(Kind::Ack).unwrap().percentiles().count, 0);
        assert_eq!(recorder.total(Kind::Ack).percentiles().count, 15);
        let phases = [0, 1].map(|phase| recorder.phase(Kind::Ack, phase).unwrap().percentiles().count);
        assert_eq!(phases, [5, 10]);
        assert!(recorder.phase(Kind::Cql, 0).is_none());
    }
}
