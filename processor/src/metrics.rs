//! What the processor measures, as handles, so that no call site can misspell a name or a label.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coderelay_runtime::telemetry::metrics::meter;
use coderelay_schemas::dlq::DlqReason;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::batch::Fate;
use crate::dedup::Memory;

/// The processor's instruments and what has to be remembered between two scrapes.
pub struct Metrics {
    process_duration: Histogram<f64>,
    records: Counter<u64>,
    dead_letters: Counter<u64>,
    batch_records: Histogram<u64>,
    commit_duration: Histogram<f64>,
    restarts: Counter<u64>,
    store_duration: Histogram<f64>,
    store_rows: Counter<u64>,
    store_failures: Counter<u64>,
    store_up: Gauge<u64>,
    store_is_up: AtomicBool,
    replay_duration: Histogram<f64>,
    replay_entries: Counter<u64>,
    workers: Arc<Mutex<HashMap<usize, WorkerState>>>,
}

/// What one worker last reported.
#[derive(Debug)]
struct WorkerState {
    /// Records waiting, per source topic.
    waiting: HashMap<String, u64>,
    /// Partitions held; `None` before the first assignment.
    partitions: Option<usize>,
    /// Records per second it allows itself; infinite when nothing limits.
    pull_rate: f64,
}

impl Default for WorkerState {
    fn default() -> Self {
        Self { waiting: HashMap::new(), partitions: None, pull_rate: f64::INFINITY }
    }
}

impl Metrics {
    /// Registers the instruments. `memory` is read when metrics are scraped.
    pub fn new(memory: &Arc<Memory>) -> Self {
        let meter = meter();
        let workers: Arc<Mutex<HashMap<usize, WorkerState>>> = Arc::default();
        let observed = Arc::clone(&workers);
        meter
            .u64_observable_gauge("queue_depth")
            .with_description("Records waiting in this process's partitions, per source topic")
            .with_callback(move |observer| {
                let mut total: HashMap<String, u64> = HashMap::new();
                for state in lock(&observed).values() {
                    for (topic, waiting) in &state.waiting {
                        *total.entry(topic.clone()).or_default() += waiting;
                    }
                }
                for (topic, waiting) in total {
                    observer.observe(waiting, &[KeyValue::new("queue", topic)]);
                }
            })
            .build();
        let observed = Arc::clone(&workers);
        meter
            .f64_observable_gauge("coderelay.processor.pull.rate")
            .with_description("Records per second a worker allows itself; absent while nothing limits it")
            .with_callback(move |observer| {
                // Infinity is no value that an OpenTelemetry instrument takes.
                for (worker, state) in lock(&observed).iter().filter(|(_, state)| state.pull_rate.is_finite()) {
                    observer.observe(state.pull_rate, &[KeyValue::new("worker", *worker as i64)]);
                }
            })
            .build();
        let held = Arc::clone(memory);
        meter
            .u64_observable_gauge("coderelay.dedup.entries")
            .with_description("Ids remembered")
            .with_callback(move |observer| observer.observe(held.len(), &[]))
            .build();
        let evicted = Arc::clone(memory);
        meter
            .u64_observable_counter("coderelay.dedup.evictions")
            .with_description("Ids forgotten before their window ended: a duplicate of them would pass")
            .with_callback(move |observer| observer.observe(evicted.evicted_early(), &[]))
            .build();
        let seconds =
            |name, description| meter.f64_histogram(name).with_unit("s").with_description(description).build();
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        let metrics = Self {
            process_duration: seconds("process.duration", "From the first poll of a batch to its commit"),
            records: counter("coderelay.processor.records", "Records accounted for, by outcome"),
            dead_letters: counter("coderelay.processor.dead_letters", "Records dead-lettered, by reason"),
            batch_records: meter
                .u64_histogram("coderelay.processor.batch.records")
                .with_description("Records of a batch, which is one transaction")
                .build(),
            commit_duration: seconds(
                "coderelay.processor.commit.duration",
                "From the begin of a transaction to its commit",
            ),
            restarts: counter("coderelay.processor.restarts", "Times a worker started over from the committed offsets"),
            store_duration: seconds(
                "coderelay.processor.store.duration",
                "Writing the rows of a batch, retries included",
            ),
            store_rows: counter("coderelay.processor.store.rows", "Rows written or refused"),
            store_failures: counter(
                "coderelay.processor.store.failures",
                "Batches the store did not take after all retries",
            ),
            store_up: meter
                .u64_gauge("coderelay.processor.store.up")
                .with_description("1 while the store takes writes")
                .build(),
            store_is_up: AtomicBool::new(false),
            replay_duration: seconds("coderelay.ledger.replay.duration", "Replaying the ledger of assigned partitions"),
            replay_entries: counter("coderelay.ledger.replay.entries", "Ledger entries replayed"),
            workers,
        };
        metrics.start_counters();
        metrics
    }

    /// Shows every counter as 0: one that only appears with its first event hides that event from `increase()`.
    fn start_counters(&self) {
        for outcome in ["accepted", "duplicate", "rejected"] {
            self.records.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        for reason in DlqReason::ALL {
            self.dead_letters.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        for counter in [&self.restarts, &self.store_rows, &self.store_failures, &self.replay_entries] {
            counter.add(0, &[]);
        }
    }

    /// A batch was committed `took` after its transaction began.
    pub fn committed(&self, fates: &[Fate], took: Duration) {
        self.commit_duration.record(took.as_secs_f64(), &[]);
        self.batch_records.record(fates.len() as u64, &[]);
        let mut rejected: HashMap<DlqReason, u64> = HashMap::new();
        let (mut accepted, mut duplicates) = (0, 0);
        for fate in fates {
            match fate {
                Fate::Accepted(_) => accepted += 1,
                Fate::Duplicate { .. } => duplicates += 1,
                Fate::Conflict { rejection, .. } | Fate::Rejected(rejection) => {
                    *rejected.entry(rejection.reason).or_default() += 1;
                }
            }
        }
        let outcome = |name| [KeyValue::new("outcome", name)];
        self.records.add(accepted, &outcome("accepted"));
        self.records.add(duplicates, &outcome("duplicate"));
        self.records.add(rejected.values().sum(), &outcome("rejected"));
        for (reason, count) in rejected {
            self.dead_letters.add(count, &[KeyValue::new("reason", reason.as_str())]);
        }
    }

    /// From the first poll of a batch to its commit.
    pub fn processed(&self, took: Duration) {
        self.process_duration.record(took.as_secs_f64(), &[]);
    }

    /// A worker started over.
    pub fn restarted(&self) {
        self.restarts.add(1, &[]);
    }

    /// The store was asked to write `rows` rows.
    pub fn stored(&self, taken: bool, rows: usize, took: Duration) {
        self.store_duration.record(took.as_secs_f64(), &[]);
        if taken {
            self.store_rows.add(rows as u64, &[]);
        } else {
            self.store_failures.add(1, &[]);
        }
    }

    /// Whether the store takes writes.
    pub fn store_up(&self, up: bool) {
        self.store_up.record(u64::from(up), &[]);
        self.store_is_up.store(up, Ordering::Relaxed);
    }

    /// Whether the store takes writes, as last reported.
    pub fn is_store_up(&self) -> bool {
        self.store_is_up.load(Ordering::Relaxed)
    }

    /// Records per second `worker` allows itself; infinite when nothing limits.
    pub fn pull_rate(&self, worker: usize, rate: f64) {
        lock(&self.workers).entry(worker).or_default().pull_rate = rate;
    }

    /// The ledger of assigned partitions was replayed.
    pub fn ledger_replayed(&self, entries: u64, took: Duration) {
        self.replay_duration.record(took.as_secs_f64(), &[]);
        self.replay_entries.add(entries, &[]);
    }

    /// Records waiting in `worker`'s partitions, per source topic.
    pub fn waiting(&self, worker: usize, waiting: HashMap<String, u64>) {
        lock(&self.workers).entry(worker).or_default().waiting = waiting;
    }

    /// Records waiting in all of `worker`'s partitions.
    pub fn backlog(&self, worker: usize) -> u64 {
        lock(&self.workers).get(&worker).map_or(0, |state| state.waiting.values().sum())
    }

    /// `worker` was assigned `partitions` partitions, perhaps none.
    pub fn assigned(&self, worker: usize, partitions: usize) {
        lock(&self.workers).entry(worker).or_default().partitions = Some(partitions);
    }

    /// `worker` holds no partitions and waits for its next assignment.
    pub fn revoked(&self, worker: usize) {
        let mut workers = lock(&self.workers);
        let state = workers.entry(worker).or_default();
        state.partitions = None;
        state.waiting.clear();
    }

    /// Workers that have an assignment, be it an empty one.
    pub fn assigned_workers(&self) -> usize {
        lock(&self.workers).values().filter(|state| state.partitions.is_some()).count()
    }
}

fn lock(workers: &Mutex<HashMap<usize, WorkerState>>) -> MutexGuard<'_, HashMap<usize, WorkerState>> {
    workers.lock().unwrap_or_else(PoisonError::into_inner)
}
