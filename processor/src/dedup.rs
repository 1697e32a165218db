//! Which packets were accepted before: the processor's memory.
//!
//! The memory is a view. The truth is the ledger topic, which is written in the same Kafka transaction as the offsets; an id may
//! enter this memory only after the transaction that carries it has committed, or by replay of what is committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coderelay_schemas::ledger::Entry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// What the memory says of a packet's id and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The id was not seen within the window.
    New,
    /// The id was seen with the same content.
    Duplicate,
    /// The id was seen with other content.
    Conflict,
}

impl Judgement {
    fn of(remembered: Option<u64>, entry: &Entry) -> Self {
        match remembered {
            None => Self::New,
            Some(fingerprint) if fingerprint == entry.fingerprint => Self::Duplicate,
            Some(_) => Self::Conflict,
        }
    }
}

/// Accepted ids of the last window, shared by all workers of a process.
///
/// An id stays for the window and leaves oldest first when the capacity is reached; such an early departure is counted, because
/// it is the one way a duplicate could pass. Entries of partitions that moved elsewhere stay too: they are as true as before, and
/// should the partition come back, only the ledger's tail has to be read.
#[derive(Debug)]
pub struct Memory {
    accepted: Cache<u128, u64>,
    evicted_early: Arc<AtomicU64>,
    /// Per ledger partition: every committed entry below this offset is, or within its window was, in `accepted`.
    replayed_to: Mutex<HashMap<i32, i64>>,
}

impl Memory {
    /// A memory of at most `capacity` ids, each kept for `window`.
    pub fn new(capacity: u64, window: Duration) -> Self {
        let evicted_early = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&evicted_early);
        let accepted = Cache::builder()
            .max_capacity(capacity)
            .time_to_live(window)
            // Least recently used, not moka's TinyLFU: that one refuses newcomers when full, and each id is inserted once.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build();
        Self { accepted, evicted_early, replayed_to: Mutex::default() }
    }

    /// Remembers entries that are committed.
    pub fn publish(&self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.accepted.insert(entry.key, entry.fingerprint);
        }
    }

    /// Whether `entry`'s id was accepted before, and with which content.
    pub fn judge(&self, entry: &Entry) -> Judgement {
        Judgement::of(self.accepted.get(&entry.key), entry)
    }

    /// The ledger offset from which `partition` has yet to be replayed; `None` when it never was.
    pub fn replayed_to(&self, partition: i32) -> Option<i64> {
        self.positions().get(&partition).copied()
    }

    /// Notes that everything committed below `offset` of ledger partition `partition` is known. Never goes back.
    pub fn mark_replayed(&self, partition: i32, offset: i64) {
        let mut positions = self.positions();
        let position = positions.entry(partition).or_insert(offset);
        *position = (*position).max(offset);
    }

    /// Ids held, approximately.
    pub fn len(&self) -> u64 {
        self.accepted.entry_count()
    }

    /// Whether no id is held, approximately.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids pushed out by the capacity before their window ended, since the start. Anything but 0 deserves an alarm.
    pub fn evicted_early(&self) -> u64 {
        self.evicted_early.load(Ordering::Relaxed)
    }

    fn positions(&self) -> std::sync::MutexGuard<'_, HashMap<i32, i64>> {
        self.replayed_to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ids that one batch is about to accept. Dropped with the batch unless its transaction commits.
#[derive(Debug, Default)]
pub struct Pending(HashMap<u128, u64>);

impl Pending {
    /// Judges `entry` against this batch first and `memory` second; a new one is noted in this batch.
    pub fn judge(&mut self, memory: &Memory, entry: &Entry) -> Judgement {
        if let Some(&fingerprint) = self.0.get(&entry.key) {
            return Judgement::of(Some(fingerprint), entry);
        }
        let judgement = memory.judge(entry);
        if judgement == Judgement::New {
            self.0.insert(entry.key, entry.fingerprint);
        }
        judgement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u128, fingerprint: u64) -> Entry {
        Entry { key, fingerprint }
    }

    fn memory() -> Memory {
        Memory::new(1000, Duration::from_secs(3600))
    }

    #[test]
    fn an_id_is_new_once_then_a_duplicate_then_a_conflict_with_other_content() {
        let memory = memory();
        assert_eq!(memory.judge(&entry(1, 7)), Judgement::New);
        memory.publish([entry(1, 7)]);
        assert_eq!(memory.judge(&entry(1, 7)), Judgement::Duplicate);
        assert_eq!(memory.judge(&entry(1, 8)), Judgement::Conflict);
    }

    #[test]
    fn a_batch_sees_its_own_ids_and_leaves_no_trace_when_dropped() {
        let memory = memory();
        let mut pending = Pending::default();
        assert_eq!(pending.judge(&memory, &entry(1, 7)), Judgement::New);
        assert_eq!(pending.judge(&memory, &entry(1, 7)), Judgement::Duplicate);
        assert_eq!(pending.judge(&memory, &entry(1, 8)), Judgement::Conflict);
        drop(pending);
        assert_eq!(memory.judge(&entry(1, 7)), Judgement::New);
    }

    #[test]
    fn ids_pushed_out_by_the_capacity_are_counted() {
        let memory = Memory::new(10, Duration::from_secs(3600));
        memory.publish((0..1000).map(|key| entry(key, 0)));
        memory.accepted.run_pending_tasks();
        assert_eq!(memory.len(), 10);
        assert_eq!(memory.evicted_early(), 990);
        assert_eq!(memory.judge(&entry(999, 0)), Judgement::Duplicate, "the newest stay");
    }

    #[test]
    fn an_id_leaves_when_its_window_ends_and_that_is_no_alarm() {
        let memory = Memory::new(10, Duration::from_millis(20));
        memory.publish([entry(1, 7)]);
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(memory.judge(&entry(1, 8)), Judgement::New);
        memory.accepted.run_pending_tasks();
        assert_eq!(memory.evicted_early(), 0);
    }

    #[test]
    fn a_replay_position_never_goes_back() {
        let memory = memory();
        assert_eq!(memory.replayed_to(3), None);
        memory.mark_replayed(3, 10);
        memory.mark_replayed(3, 5);
        assert_eq!(memory.replayed_to(3), Some(10));
    }
}
