//! Ids that were accepted in one partition at about the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use coderelay_schemas::ledger::Entry;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

/// A compact map from id to fingerprint: 25 bytes a place, of which 7 in 16 to 7 in 8 are taken.
///
/// A key is the beginning of a BLAKE3 hash already, so its own bits serve as the hash.
#[derive(Debug, Default)]
pub(super) struct Table(HashTable<Slot>);

/// An [`Entry`] without the padding that a `u128` asks for.
#[derive(Debug)]
struct Slot {
    key: [u64; 2],
    fingerprint: u64,
}

impl Slot {
    fn of(entry: &Entry) -> Self {
        Self { key: halves(entry.key), fingerprint: entry.fingerprint }
    }
}

fn halves(key: u128) -> [u64; 2] {
    [(key >> 64) as u64, key as u64]
}

impl Table {
    pub(super) fn get(&self, key: u128) -> Option<u64> {
        let key = halves(key);
        self.0.find(key[1], |slot| slot.key == key).map(|slot| slot.fingerprint)
    }

    /// Whether the id is new here; otherwise its fingerprint is replaced.
    pub(super) fn insert(&mut self, entry: &Entry) -> bool {
        let new = Slot::of(entry);
        match self.0.entry(new.key[1], |slot| slot.key == new.key, |slot| slot.key[1]) {
            Place::Occupied(mut slot) => {
                slot.get_mut().fingerprint = new.fingerprint;
                false
            }
            Place::Vacant(place) => {
                place.insert(new);
                true
            }
        }
    }

    /// Whether the id was here.
    fn remove(&mut self, key: u128) -> bool {
        let key = halves(key);
        match self.0.find_entry(key[1], |slot| slot.key == key) {
            Ok(found) => {
                found.remove();
                true
            }
            Err(_) => false,
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

    pub(super) fn insert(&self, entries: &[Entry]) {
        let mut table = self.write();
        let new = entries.iter().filter(|entry| table.insert(entry)).count();
        self.held.fetch_add(new as u64, Ordering::Relaxed);
    }

    /// Removes the ids of `entries`: they are in a younger page now.
    pub(super) fn yield_to_younger(&self, entries: &[Entry]) {
        let mut table = self.write();
        let gone = entries.iter().filter(|entry| table.remove(entry.key)).count();
        self.held.fetch_sub(gone as u64, Ordering::Relaxed);
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
