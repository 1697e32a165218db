//! Ids that were accepted in one partition at about the same time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use coderelay_schemas::ledger::Entry;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use super::topics::TopicSet;

/// A compact set of ids: 26 bytes a place, of which 7 in 16 to 7 in 8 are taken.
#[derive(Debug, Default)]
pub(super) struct Table(HashTable<Slot>);

/// What is remembered of one id. Packed, since alignment would ask for 48 bytes in place of 25.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub(super) struct Slot {
    key: u128,
    /// Of the content that was accepted.
    pub(super) fingerprint: u64,
    /// Where it was seen.
    pub(super) topics: TopicSet,
}

impl Slot {
    pub(super) fn new(entry: &Entry, topics: TopicSet) -> Self {
        Self { key: entry.key, fingerprint: entry.fingerprint, topics }
    }

    /// The same, seen in `topics` too.
    pub(super) fn also_in(self, topics: TopicSet) -> Self {
        Self { topics: self.topics.union(topics), ..self }
    }

    /// A key is the beginning of a BLAKE3 hash already, so its own bits serve as the hash.
    fn hash(&self) -> u64 {
        self.key as u64
    }
}

impl Table {
    pub(super) fn get(&self, key: u128) -> Option<Slot> {
        self.0.find(key as u64, |slot| { slot.key } == key).copied()
    }

    /// Whether the id is new here. Otherwise it was seen in the topics of both, unless it was accepted anew with other content.
    pub(super) fn insert(&mut self, new: Slot) -> bool {
        match self.0.entry(new.hash(), |slot| { slot.key } == { new.key }, Slot::hash) {
            Place::Occupied(mut place) => {
                let slot = place.get_mut();
                *slot = if { slot.fingerprint } == { new.fingerprint } { slot.also_in(new.topics) } else { new };
                false
            }
            Place::Vacant(place) => {
                place.insert(new);
                true
            }
        }
    }

    fn remove(&mut self, key: u128) -> Option<Slot> {
        let found = self.0.find_entry(key as u64, |slot| { slot.key } == key).ok()?;
        Some(found.remove().0)
    }

    /// Adds the topics in which an older page has seen an id of this one.
    fn inherit(&mut self, older: Slot) {
        if let Some(slot) = self.0.find_mut(older.hash(), |slot| { slot.key } == { older.key })
            && { slot.fingerprint } == { older.fingerprint }
        {
            *slot = slot.also_in(older.topics);
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One page of the memory. Its ids are counted in `held`, which all pages share, until they leave or the page is dropped.
#[derive(Debug)]
pub(super) struct Page {
    opened: Instant,
    table: RwLock<Table>,
    held: Arc<AtomicU64>,
}

impl Page {
    pub(super) fn open(held: &Arc<AtomicU64>) -> Self {
        Self { opened: Instant::now(), table: RwLock::default(), held: Arc::clone(held) }
    }

    /// Time since the page was opened.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `entries`, seen in `topics`. Those that are in one of the pages `older` move from there, with the topics they were seen in
    /// before; no reader finds them in neither page.
    pub(super) fn insert(&self, entries: &[Entry], topics: TopicSet, older: &VecDeque<Arc<Self>>) {
        let mut table = self.write();
        let new = entries.iter().filter(|entry| table.insert(Slot::new(entry, topics))).count();
        self.held.fetch_add(new as u64, Ordering::Relaxed);
        for page in older {
            let mut leaving = page.write();
            let gone =
                entries.iter().filter_map(|entry| leaving.remove(entry.key)).map(|slot| table.inherit(slot)).count();
            self.held.fetch_sub(gone as u64, Ordering::Relaxed);
        }
    }

    /// Empties the page; says how many ids it held.
    pub(super) fn clear(&self) -> u64 {
        let gone = std::mem::take(&mut *self.write()).len() as u64;
        self.held.fetch_sub(gone, Ordering::Relaxed);
        gone
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.clear();
    }
}
