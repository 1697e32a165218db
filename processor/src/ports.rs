//! What the cycle needs of the world, as traits: a source of records, the ledger, the store, a transaction, the time.
//!
//! The real ones speak Kafka and CQL ([`crate::kafka`], [`crate::cql`]); the tests drive the same cycle through simulated ones with every
//! schedule of crash, abort and revocation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use coderelay_runtime::clock;
use coderelay_schemas::ledger::Entry;

use crate::decode::{Rejection, Row};
use crate::pace::StoreSample;
use crate::record::{Record, TopicPartition};

/// Why a worker cannot go on as it is.
///
/// There are only two verdicts. Whatever was in doubt is settled the same way: new clients, the committed offsets, the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing more can be said of the work in hand; drop it and start over from what is committed.
    #[error("{0}")]
    Restart(String),
    /// Another process has taken this worker's identity; going on would only take it back.
    #[error("{0}")]
    Fenced(String),
}

impl Fault {
    /// A [`Fault::Restart`] that says what was being done.
    pub fn restart(doing: &str, error: impl std::fmt::Display) -> Self {
        Self::Restart(format!("{doing}: {error}"))
    }
}

/// What a poll brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Polled {
    /// One record.
    Record(Record),
    /// Partitions that are this member's from now on.
    Assigned(Vec<TopicPartition>),
    /// Partitions that no longer are: whatever is buffered of them must be dropped.
    Revoked(Vec<TopicPartition>),
    /// Nothing within the time-out.
    Nothing,
}

/// The world of a cycle, handed over at its start.
pub struct World<S, L, K, T, C> {
    /// Where records come from.
    pub source: S,
    /// Where committed entries are read.
    pub ledger: L,
    /// Where rows go.
    pub store: K,
    /// Where everything else goes.
    pub transaction: T,
    /// The time.
    pub clock: C,
}

/// A member of the consumer group.
pub trait Source {
    /// Proof of membership in one generation of the group.
    type Membership;

    /// Waits up to `timeout` for what comes next. Rebalances happen inside this call and nowhere else.
    ///
    /// # Errors
    /// When the member has to be replaced or was fenced.
    fn poll(&mut self, timeout: Duration) -> Result<Polled, Fault>;

    /// The current membership; `None` when the assignment is lost and everything buffered is void.
    fn membership(&mut self) -> Option<Self::Membership>;

    /// Waits until no transaction that moves the offsets of `partitions` is pending any more, and returns the committed ones.
    ///
    /// Afterwards no former owner can move them: its generation is over.
    ///
    /// # Errors
    /// When the group coordinator does not answer.
    fn stable_offsets(&mut self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Fault>;

    /// Stops fetching, also of what is assigned until [`Source::resume`]. Prefetched records are thrown away and fetched again, so
    /// this is for sustained pressure only.
    ///
    /// # Errors
    /// When the client refuses.
    fn pause(&mut self) -> Result<(), Fault>;

    /// Fetches again.
    ///
    /// # Errors
    /// When the client refuses.
    fn resume(&mut self) -> Result<(), Fault>;

    /// Records that wait in this member's partitions, as of the last statistics.
    fn backlog(&self) -> u64;
}

/// The ledger topic as a reader of committed records sees it.
pub trait Ledger {
    /// Hands every entry that was committed before this call to `visit`, with its partition and source topic and in its order there: from
    /// the given offset, or from `since`, whichever is later. Returns for each partition the offset up to which it is now known.
    ///
    /// # Errors
    /// When the topic cannot be read to its end.
    fn replay(
        &mut self,
        from: &BTreeMap<i32, Option<i64>>,
        since: SystemTime,
        visit: &mut dyn FnMut(i32, &str, &[Entry]),
    ) -> Result<BTreeMap<i32, i64>, Fault>;
}

/// How one row fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOutcome {
    /// Written and acknowledged.
    Stored,
    /// Refused for its content; trying again would change nothing.
    Refused {
        /// What the store said.
        detail: String,
        /// How often it was asked.
        attempts: u32,
    },
}

/// The store does not take writes now; the reason it gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// The table of packets. Writing a row again changes nothing.
pub trait Store {
    /// Writes `rows` with at most `concurrency` requests under way, trying again for a while, and says how each fared, in order.
    ///
    /// # Errors
    /// [`Unavailable`] when a row could be neither stored nor refused. Others may have been stored.
    fn write(&mut self, rows: &[&Row], concurrency: usize) -> Result<(Vec<RowOutcome>, StoreSample), Unavailable>;

    /// Whether the store takes writes.
    ///
    /// # Errors
    /// The reason why it does not.
    fn probe(&mut self) -> Result<(), Unavailable>;
}

/// One Kafka transaction at a time: outputs, ledger and offsets become visible together or not at all.
pub trait Transaction {
    /// See [`Source::Membership`].
    type Membership;

    /// Opens the transaction.
    ///
    /// # Errors
    /// As for every method here: the transaction is not known to have committed and this object is of no further use.
    fn begin(&mut self) -> Result<(), Fault>;

    /// Copies an accepted record to the duplicate-free topic, same partition, byte for byte.
    ///
    /// # Errors
    /// See [`Transaction::begin`].
    fn publish(&mut self, record: &Record) -> Result<(), Fault>;

    /// Copies a record to the dead-letter topic with the reason.
    ///
    /// # Errors
    /// See [`Transaction::begin`].
    fn dead_letter(&mut self, record: &Record, rejection: &Rejection) -> Result<(), Fault>;

    /// Appends entries of packets from `source` to the partition of the ledger that has the same number.
    ///
    /// # Errors
    /// See [`Transaction::begin`].
    fn remember(&mut self, source: &TopicPartition, entries: &[Entry]) -> Result<(), Fault>;

    /// Adds the offsets from which the group is to continue.
    ///
    /// # Errors
    /// See [`Transaction::begin`]; a membership of a past generation is refused here.
    fn send_offsets(
        &mut self,
        offsets: &BTreeMap<TopicPartition, i64>,
        membership: &Self::Membership,
    ) -> Result<(), Fault>;

    /// Waits for every delivery and commits.
    ///
    /// # Errors
    /// See [`Transaction::begin`]. An error does not mean that nothing was committed.
    fn commit(&mut self) -> Result<(), Fault>;

    /// Makes ready for the next transaction after a commit that failed, whatever became of that: what
    /// [`Flaw::ReuseProducer`](coderelay_runtime::flaw::Flaw::ReuseProducer) does.
    ///
    /// # Errors
    /// When the client refuses to go on.
    #[cfg(feature = "flaws")]
    fn reuse(&mut self) -> Result<(), Fault>;
}

/// The time, and waiting for it.
pub trait Clock {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Time of day.
    fn wall(&self) -> SystemTime;
    /// Lets `duration` pass.
    fn sleep(&self, duration: Duration);
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        clock::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
