//! The exactly-once cycle: poll, decide, store, commit, and only then remember.
//!
//! ```text
//!  poll phase                     commit phase
//!  collect ──▶ replay assigned ──▶ classify ──▶ store ──▶ begin … send_offsets … commit ──▶ publish to memory
//!     ▲                                                                                          │
//!     └──────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Three rules carry the argument:
//! 1. **No transaction is open across a poll.** Rebalances happen inside polls only, so a batch is entirely ours from the last poll
//!    before its commit to the commit, or the broker refuses its offsets because the generation is over.
//! 2. **An id enters the memory after its transaction committed**, never before. A crash or an abort leaves no trace in it.
//! 3. **A partition is processed only after its ledger was replayed**, up to everything its former owners committed.
//!
//! Where a partition is fed by several topics, those of several regions, the other region may see the copies of a packet in another
//! order and accept another one. So that both stores end with the same row, each writes the first copy that every topic brings, and CQL
//! keeps the one with the highest write timestamp; of two with the same, in every column the larger value. Later copies in a topic are
//! never written. What is written depends on the order within each topic, which a mirror keeps, and on none between them. The ledger has
//! an entry for each copy that was written, so that this, too, outlives a restart.
//!
//! Any doubt ends the cycle with a [`Fault`]: its owner makes new clients, and rule 3 tells what had been committed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use coderelay_runtime::flaw::{self, Flaw};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::validate::PacketLimits;
use tracing::{info, warn};

use crate::batch::{Batch, BatchLimits, Fate, Plan};
use crate::decode::Row;
use crate::dedup::Memory;
use crate::metrics::Metrics;
use crate::pace::{Pace, StoreSample};
use crate::ports::{Clock, Fault, Ledger, Polled, RowOutcome, Source, Store, Transaction, Unavailable, World};
use crate::record::{Record, TopicPartition};
use crate::{failpoint, trace};

/// How long a poll waits when nothing is there: how soon a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(100);
/// Pauses shorter than this are slept through; for longer ones fetching is paused.
const PAUSE_ABOVE: Duration = Duration::from_secs(1);
/// Between two probes of a store that is away.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How far the clocks of processors may differ: the ledger's records bear the time of whoever wrote them.
const CLOCK_SKEW: Duration = Duration::from_secs(600);

/// Expiry of old records while the backlog is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Records waiting above which old ones expire.
    pub backlog: u64,
    /// Age from which they do.
    pub max_age: Duration,
}

/// What the cycle may do and when.
#[derive(Clone, Debug)]
pub struct CycleLimits {
    /// Size of a batch.
    pub batch: BatchLimits,
    /// How long the first record of a batch waits for company.
    pub linger: Duration,
    /// How far back the ledger is replayed: the dedup window.
    pub window: Duration,
    /// What a packet may be.
    pub packet: PacketLimits,
    /// Whether and when old records expire.
    pub expiry: Option<Expiry>,
}

/// One worker's cycle over its source, ledger, store and transaction.
pub struct Cycle<S, L, K, T, C> {
    source: S,
    ledger: L,
    store: K,
    transaction: T,
    clock: C,
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    limits: CycleLimits,
    pace: Pace,
    batch: Batch,
    /// When the first record of the batch was polled.
    begun: Option<Instant>,
    /// Assigned, but the ledger was not replayed yet.
    unreplayed: Vec<TopicPartition>,
    /// The committed offsets at assignment: nothing below them may be read.
    floors: BTreeMap<TopicPartition, i64>,
    stopped: Box<dyn Fn() -> bool>,
}

impl<S, L, K, T, C> Cycle<S, L, K, T, C>
where
    S: Source,
    L: Ledger,
    K: Store,
    T: Transaction<Membership = S::Membership>,
    C: Clock,
{
    /// A cycle that has polled nothing yet. `stopped` is asked between steps and ends waits.
    pub fn new(
        world: World<S, L, K, T, C>,
        memory: Arc<Memory>,
        metrics: Arc<Metrics>,
        limits: CycleLimits,
        pace: Pace,
        stopped: impl Fn() -> bool + 'static,
    ) -> Self {
        let World { source, ledger, store, transaction, clock } = world;
        let (batch, unreplayed, floors) = (Batch::default(), Vec::new(), BTreeMap::new());
        let stopped = Box::new(stopped);
        Self {
            source,
            ledger,
            store,
            transaction,
            clock,
            memory,
            metrics,
            limits,
            pace,
            batch,
            begun: None,
            unreplayed,
            floors,
            stopped,
        }
    }

    /// One turn: collects a batch and accounts for every record of it. Returns how many records were committed.
    ///
    /// # Errors
    /// A [`Fault`] after which this cycle is of no further use.
    pub fn turn(&mut self) -> Result<usize, Fault> {
        self.collect()?;
        // Once: what the store had half written when it went away must not expire while it is waited for, since its rows stay.
        let expired_before_ms = self.expired_before_ms();
        loop {
            self.replay_assigned()?;
            if self.batch.is_empty() {
                return Ok(0);
            }
            failpoint::hit("after-poll");
            let _span = trace::span(self.batch.records()).entered();
            self.check_floors()?;
            // Taken after the last poll and before anything is written: were it taken later, a member that was expelled meanwhile could
            // commit as an anonymous client, whom the broker does not fence.
            let Some(membership) = self.source.membership() else {
                self.batch = Batch::default();
                return Ok(0);
            };
            let plan = self.classify(expired_before_ms)?;
            if flaw::is(Flaw::OffsetsBeforeStore) {
                let committed = self.commit(&plan, &membership)?;
                return self.write(plan).map(|_| committed).map_err(|error| Fault::restart("writing rows", error));
            }
            match self.write(plan) {
                Ok(plan) => return self.commit(&plan, &membership),
                Err(unavailable) => self.wait_for_store(&unavailable)?,
            }
            if (self.stopped)() {
                self.batch = Batch::default();
                return Ok(0);
            }
        }
    }

    /// How fast this cycle has learned to pull: the next one begins there.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    // ---- poll phase -------------------------------------------------------------------------------------------------------

    /// Polls until the batch is full, or its linger has passed and nothing more is there yet.
    fn collect(&mut self) -> Result<(), Fault> {
        self.batch = Batch::default();
        self.begun = None;
        let allowed = self.pace.allowance(self.limits.batch.records, self.clock.now());
        if allowed == 0 {
            return self.idle(self.pace.wait());
        }
        let limits = BatchLimits { records: allowed, ..self.limits.batch };
        let mut timeout = IDLE_POLL;
        while !self.batch.is_full(&limits) {
            if !self.poll(timeout)? && (self.batch.is_empty() || timeout.is_zero()) {
                break;
            }
            if let Some(begun) = self.begun {
                timeout = (begun + self.limits.linger).saturating_duration_since(self.clock.now());
            }
        }
        self.pace.spend(self.batch.len());
        Ok(())
    }

    /// One poll; whether it brought anything.
    fn poll(&mut self, timeout: Duration) -> Result<bool, Fault> {
        match self.source.poll(timeout)? {
            Polled::Record(record) => {
                if self.begun.is_none() {
                    self.begun = Some(self.clock.now());
                }
                self.batch.push(record);
            }
            Polled::Assigned(partitions) => self.unreplayed.extend(partitions),
            Polled::Revoked(partitions) => {
                self.batch.drop_partitions(&partitions);
                let revoked: HashSet<_> = partitions.into_iter().collect();
                self.unreplayed.retain(|partition| !revoked.contains(partition));
                self.floors.retain(|partition, _| !revoked.contains(partition));
            }
            Polled::Nothing => return Ok(false),
        }
        Ok(true)
    }

    /// Lets `wait` pass without taking records. Short waits are slept through, since pausing throws prefetched records away.
    fn idle(&mut self, wait: Duration) -> Result<(), Fault> {
        if wait <= PAUSE_ABOVE {
            self.clock.sleep(wait);
            return Ok(());
        }
        self.source.pause()?;
        self.poll_paused(wait)?;
        self.source.resume()
    }

    /// Polls for as long as `wait` while fetching is paused, so that the group goes on. A record that slips through is in the batch like
    /// any other.
    fn poll_paused(&mut self, wait: Duration) -> Result<(), Fault> {
        let until = self.clock.now() + wait;
        while self.clock.now() < until && !(self.stopped)() {
            self.poll(IDLE_POLL)?;
        }
        Ok(())
    }

    /// Brings the memory up to date for partitions that were just assigned.
    ///
    /// The order matters. First the committed offsets: the broker answers when no transaction that moves them is pending, and no former
    /// owner can add one, its generation being over. Then the ledger: whatever those transactions accepted is committed there by now.
    fn replay_assigned(&mut self) -> Result<(), Fault> {
        if self.unreplayed.is_empty() {
            return Ok(());
        }
        let started = self.clock.now();
        let reversed = flaw::is(Flaw::ReplayBeforeOffsets);
        if reversed {
            self.replay(started)?;
        }
        let committed = self.source.stable_offsets(&self.unreplayed)?;
        self.floors.extend(committed);
        failpoint::hit("during-replay");
        if !(reversed || flaw::is(Flaw::NoReplay)) {
            self.replay(started)?;
        }
        self.unreplayed.clear();
        Ok(())
    }

    fn replay(&mut self, started: Instant) -> Result<(), Fault> {
        let from: BTreeMap<i32, Option<i64>> =
            self.unreplayed.iter().map(|tp| (tp.partition, self.memory.replayed_to(tp.partition))).collect();
        let since = self.clock.wall().checked_sub(self.limits.window + CLOCK_SKEW).unwrap_or(UNIX_EPOCH);
        let mut entries = 0_u64;
        let ends = self.ledger.replay(&from, since, &mut |partition, topic, committed| {
            entries += committed.len() as u64;
            self.memory.publish(partition, topic, committed);
        })?;
        for (partition, end) in ends {
            self.memory.mark_replayed(partition, end);
        }
        let took = self.clock.now().saturating_duration_since(started);
        self.metrics.ledger_replayed(entries, took);
        info!(partitions = from.len(), entries, ?took, "replayed the ledger of assigned partitions");
        Ok(())
    }

    /// A record from before the committed offset means that the consumer was positioned by something else, such as its reset policy:
    /// what was accepted longer ago than the window would be published again.
    fn check_floors(&self) -> Result<(), Fault> {
        let below = |record: &&Record| self.floors.get(&record.source).is_some_and(|floor| record.offset < *floor);
        match self.batch.records().iter().find(below) {
            None => Ok(()),
            Some(Record { source, offset, .. }) => {
                Err(Fault::Restart(format!("{source}@{offset} was read from before the committed offset")))
            }
        }
    }

    // ---- commit phase -----------------------------------------------------------------------------------------------------

    /// The timestamp before which records expire, if any do now.
    fn expired_before_ms(&self) -> Option<i64> {
        let expiry = self.limits.expiry.filter(|expiry| self.source.backlog() > expiry.backlog)?;
        let before = self.clock.wall().checked_sub(expiry.max_age).unwrap_or(UNIX_EPOCH);
        Some(before.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64))
    }

    fn classify(&self, expired_before_ms: Option<i64>) -> Result<Plan, Fault> {
        Plan::of(&self.batch, &self.memory, &self.limits.packet, expired_before_ms)
            .map_err(|error| Fault::Restart(error.to_string()))
    }

    /// Writes the accepted rows, and then those of the first copies that other topics bring. Accepted rows the store refuses for their
    /// content become rejections; the others are not held up by them. A copy that is refused was never there: its packet is in the store.
    fn write(&mut self, mut plan: Plan) -> Result<Plan, Unavailable> {
        let outcomes = self.store_rows(&plan.rows())?;
        let mut asked = outcomes.len();
        plan.settle(outcomes);
        let outcomes = self.store_rows(&plan.copies())?;
        asked += outcomes.len();
        plan.settle_copies(outcomes);
        self.pace.refund(self.batch.len().saturating_sub(asked));
        failpoint::hit("after-store");
        Ok(plan)
    }

    fn store_rows(&mut self, rows: &[&Row]) -> Result<Vec<RowOutcome>, Unavailable> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (outcomes, sample) = self.store.write(rows, self.pace.concurrency())?;
        self.pace.observe(sample, self.clock.now());
        self.metrics.store_up(true);
        Ok(outcomes)
    }

    /// Waits until the store answers, with fetching paused but always polling. Keeps the batch, except what is revoked meanwhile.
    ///
    /// An outage is no fault of the records: none of them goes to the dead-letter topic for it.
    fn wait_for_store(&mut self, reason: &Unavailable) -> Result<(), Fault> {
        warn!(%reason, "the store is away; fetching is paused until it answers");
        self.pace.observe(StoreSample { records: 0, slowest: Duration::ZERO, troubled: true }, self.clock.now());
        self.metrics.store_up(false);
        self.source.pause()?;
        let began = self.clock.now();
        // Polls first: a store that answers the probe and refuses writes must not keep the member from its group.
        loop {
            self.poll_paused(PROBE_EVERY)?;
            if (self.stopped)() || self.store.probe().is_ok() {
                break;
            }
        }
        info!(after = ?self.clock.now().saturating_duration_since(began), "trying the store again");
        self.source.resume()
    }

    /// Makes the batch visible: outputs, ledger and offsets in one transaction. Then, and only then, the memory learns of it.
    fn commit(&mut self, plan: &Plan, membership: &S::Membership) -> Result<usize, Fault> {
        let started = self.clock.now();
        let entries = plan.entries(&self.batch);
        if flaw::is(Flaw::RememberBeforeCommit) {
            self.remember(&entries);
        }

        failpoint::hit("before-begin");
        self.transaction.begin()?;
        failpoint::hit("after-begin");
        for (record, fate) in self.batch.records().iter().zip(plan.fates()) {
            match fate {
                Fate::Accepted(_) => self.transaction.publish(record)?,
                Fate::Conflict { rejection, .. } | Fate::Rejected(rejection) => {
                    self.transaction.dead_letter(record, rejection)?;
                }
                Fate::Duplicate { .. } => {}
            }
        }
        for (source, entries) in &entries {
            self.transaction.remember(source, entries)?;
        }
        failpoint::hit("before-send-offsets");
        self.transaction.send_offsets(&self.batch.next_offsets(), membership)?;
        failpoint::hit("before-commit");
        let committed = self.transaction.commit();
        #[cfg(feature = "flaws")]
        if committed.is_err() && flaw::is(Flaw::ReuseProducer) {
            self.transaction.reuse()?;
            return self.commit(plan, membership);
        }
        committed?;
        failpoint::hit("after-commit");

        self.remember(&entries);
        let now = self.clock.now();
        self.metrics.committed(plan.fates(), now.saturating_duration_since(started));
        self.metrics.processed(self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun)));
        Ok(self.batch.len())
    }

    fn remember(&self, entries: &BTreeMap<&TopicPartition, Vec<Entry>>) {
        for (source, entries) in entries {
            self.memory.publish(source.partition, &source.topic, entries);
        }
    }
}
