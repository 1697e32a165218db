//! One worker: a thread that owns its consumer, its transactional producer and its part of the partitions.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cql::{CqlStore, Inserter};
use crate::cycle::{Cycle, CycleLimits};
use crate::dedup::Memory;
use crate::kafka::{Identity, KafkaLedger, KafkaSource, KafkaTransaction};
use crate::metrics::Metrics;
use crate::pace::{Pace, PaceLimits};
use crate::ports::{Fault, SystemClock, World};

/// Everything a worker shares with its siblings.
pub struct Shared {
    /// What was accepted before.
    pub memory: Arc<Memory>,
    /// Where measurements go.
    pub metrics: Arc<Metrics>,
    /// The connected store.
    pub inserter: Arc<Inserter>,
    /// What the cycle may do.
    pub limits: CycleLimits,
    /// How fast it may.
    pub pace: PaceLimits,
    /// Where the store's requests run.
    pub runtime: Handle,
    /// Ends all workers.
    pub stop: CancellationToken,
}

/// Starts worker `number` as `identity`. The thread ends when `shared.stop` is cancelled, or with an error when the worker is fenced, in
/// which case it cancels `shared.stop` for all.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(number: usize, identity: Identity, shared: Arc<Shared>) -> std::io::Result<JoinHandle<Result<(), Fault>>> {
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        // Also when this thread panics: a process with a dead worker must not look alive.
        let _stop_all = shared.stop.clone().drop_guard();
        supervise(number, &identity, &shared)
    })
}

/// Runs cycle after cycle. A cycle ends at the first doubt; the next one begins with new clients at what is committed.
fn supervise(number: usize, identity: &Identity, shared: &Shared) -> Result<(), Fault> {
    let mut waits = restart_waits();
    let mut pace = Pace::new(shared.pace, Instant::now());
    while !shared.stop.is_cancelled() {
        let started = Instant::now();
        match run(number, identity, shared, &mut pace) {
            Ok(()) => break,
            Err(fault @ Fault::Fenced(_)) => {
                error!(worker = number, member = identity.member, %fault, "fenced; stopping");
                return Err(fault);
            }
            Err(Fault::Restart(reason)) => {
                warn!(worker = number, reason, "starting over from the committed offsets");
                shared.metrics.restarted();
                shared.metrics.revoked(number);
            }
        }
        if started.elapsed() > Duration::from_secs(30) {
            waits = restart_waits();
        }
        shared.runtime.block_on(async {
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))) => {}
            }
        });
    }
    info!(worker = number, "stopped");
    Ok(())
}

fn restart_waits() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .build()
}

/// One life of the worker's clients. What it learns of the store's pace outlives it.
fn run(number: usize, identity: &Identity, shared: &Shared, pace: &mut Pace) -> Result<(), Fault> {
    // The producer first: it ends what a predecessor left open, so that the committed offsets become stable at once.
    let transaction = KafkaTransaction::open(identity, number)?;
    let source = KafkaSource::join(identity, number, Arc::clone(&shared.metrics))?;
    let store = CqlStore::new(shared);
    let world = World { source, ledger: KafkaLedger::new(identity), store, transaction, clock: SystemClock };
    let (memory, metrics) = (Arc::clone(&shared.memory), Arc::clone(&shared.metrics));
    let stop = shared.stop.clone();
    let mut cycle =
        Cycle::new(world, memory, metrics, shared.limits.clone(), pace.clone(), move || stop.is_cancelled());
    let mut outcome = Ok(());
    while outcome.is_ok() && !shared.stop.is_cancelled() {
        let limited = cycle.pace().rate().is_finite();
        outcome = cycle.turn().map(drop);
        let rate = cycle.pace().rate();
        shared.metrics.pull_rate(number, rate);
        match (limited, rate.is_finite()) {
            (false, true) => warn!(worker = number, records_per_second = rate, "the store is slow; pulling less"),
            (true, false) => info!(worker = number, "the store bears what comes; pulling without limit"),
            _ => {}
        }
    }
    pace.clone_from(cycle.pace());
    outcome
}
