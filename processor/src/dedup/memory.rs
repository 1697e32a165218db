//! The memory of all partitions: pages of ids, each of which leaves as a whole when the last of its ids has outlived the window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coderelay_schemas::ledger::Entry;
use moka::sync::Cache;

use super::page::{Page, Slot, Table};
use super::topics::Topics;
use super::{Judgement, TooManyTopics, TopicSet};

/// A page takes ids for this fraction of the window and stays by as much longer than the window.
const SLICES_PER_WINDOW: u32 = 8;
/// A page takes at most this fraction of the capacity, so that no more is forgotten at once when the capacity is exceeded.
const PAGES_PER_CAPACITY: u64 = 16;

/// Accepted ids of the last window, shared by all workers of a process.
///
/// An id stays for the window at least, and for an eighth more at most. Above the capacity the oldest page leaves first; such an early
/// departure is counted, because it is the one way a duplicate could pass. Ids of partitions that moved elsewhere stay too: they are as
/// true as before, and should the partition come back, only the ledger's tail has to be read.
///
/// An entry of its own in the cache would cost an id 370 bytes; in a page it costs 30 to 59.
#[derive(Debug)]
pub struct Memory {
    /// By number, in the order in which they were opened. Their time to live is the window and a slice.
    pages: Cache<u64, Arc<Page>>,
    index: Mutex<Index>,
    topics: Topics,
    capacity: u64,
    page_capacity: usize,
    window: Duration,
    held: Arc<AtomicU64>,
    evicted_early: AtomicU64,
}

/// Which pages are whose. Locked for the whole of a publication, so that no page is emptied while another worker adds to it.
#[derive(Debug, Default)]
struct Index {
    next_page: u64,
    partitions: BTreeMap<i32, Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    /// Every committed entry of the ledger below this offset is, or within its window was, in `pages`.
    replayed_to: Option<i64>,
    /// Numbers of its pages, oldest first.
    pages: VecDeque<u64>,
}

impl Memory {
    /// A memory of at most `capacity` ids, each kept for `window`.
    pub fn new(capacity: u64, window: Duration) -> Self {
        Self {
            pages: Cache::builder()
                .time_to_live(window + window / SLICES_PER_WINDOW)
                // The cache may keep a page that has left for a while yet; its ids go at once.
                .eviction_listener(|_, page: Arc<Page>, _| {
                    page.clear();
                })
                .build(),
            index: Mutex::default(),
            topics: Topics::default(),
            capacity,
            page_capacity: capacity.div_ceil(PAGES_PER_CAPACITY).max(1) as usize,
            window,
            held: Arc::default(),
            evicted_early: AtomicU64::new(0),
        }
    }

    /// The set of source topic `topic` alone.
    ///
    /// # Errors
    /// When [`MAX_TOPICS`](super::MAX_TOPICS) others were seen since the start.
    pub fn topic(&self, topic: &str) -> Result<TopicSet, TooManyTopics> {
        self.topics.only(topic)
    }

    /// Remembers `entries`, which are committed in ledger partition `partition` as seen in source topic `topic`, from now on for the
    /// window.
    pub fn publish(&self, partition: i32, topic: &str, mut entries: &[Entry]) {
        // A topic too many is none whose records are processed: it is from the ledger, where it was read under another configuration.
        let topics = self.topic(topic).unwrap_or_default();
        let mut index = self.index();
        while !entries.is_empty() {
            let mut pages = self.pages_of(&mut index, partition);
            if !pages.back().is_some_and(|page| self.is_open(page)) {
                pages.push_back(self.open_page(&mut index, partition));
            }
            let Some(page) = pages.pop_back() else { return };
            let room = self.page_capacity - page.len();
            let (fitting, rest) = entries.split_at(room.min(entries.len()));
            page.insert(fitting, topics, &pages);
            self.evict(&mut index);
            entries = rest;
        }
    }

    /// What is to become of packets that are not committed yet, in ledger partition `partition`, each with its source topic: each is
    /// judged as though those before it had been committed. Nothing is remembered of it.
    pub fn judge(&self, partition: i32, packets: &[(TopicSet, Entry)]) -> Vec<Judgement> {
        let pages = self.pages_of(&mut self.index(), partition);
        let newest_first: Vec<_> = pages.iter().rev().map(|page| page.read()).collect();
        let mut pending = Table::default();
        let judge = |(topic, entry): &(TopicSet, Entry)| {
            let remembered = newest_first.iter().find_map(|page| page.get(entry.key));
            let seen = match remembered {
                Some(slot) if slot.topics.contains(*topic) => Some(slot),
                _ => pending.get(entry.key).or(remembered),
            };
            let Some(slot) = seen else {
                pending.insert(Slot::new(entry, *topic));
                return Judgement::New;
            };
            let first = !slot.topics.contains(*topic);
            if first {
                pending.insert(slot.also_in(*topic));
            }
            let accepted = slot.fingerprint;
            if accepted == entry.fingerprint {
                Judgement::Duplicate { first }
            } else {
                Judgement::Conflict { first, accepted }
            }
        };
        packets.iter().map(judge).collect()
    }

    /// The ledger offset from which `partition` has yet to be replayed; `None` when it never was.
    pub fn replayed_to(&self, partition: i32) -> Option<i64> {
        self.index().partitions.get(&partition)?.replayed_to
    }

    /// Notes that everything committed below `offset` of ledger partition `partition` is known. Never goes back.
    pub fn mark_replayed(&self, partition: i32, offset: i64) {
        let mut index = self.index();
        let known = &mut index.partitions.entry(partition).or_default().replayed_to;
        *known = (*known).max(Some(offset));
    }

    /// Ids held. Those whose time is over are let go first.
    pub fn len(&self) -> u64 {
        self.pages.run_pending_tasks();
        self.held.load(Ordering::Relaxed)
    }

    /// Whether no id is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids pushed out by the capacity before their window ended, since the start. Anything but 0 deserves an alarm.
    pub fn evicted_early(&self) -> u64 {
        self.evicted_early.load(Ordering::Relaxed)
    }

    /// A partition's pages, oldest first, without those whose time is over.
    fn pages_of(&self, index: &mut Index, partition: i32) -> VecDeque<Arc<Page>> {
        let Some(Partition { pages: numbers, .. }) = index.partitions.get_mut(&partition) else {
            return VecDeque::new();
        };
        let mut pages = VecDeque::with_capacity(numbers.len() + 1);
        numbers.retain(|number| {
            let page = self.pages.get(number);
            let lives = page.is_some();
            pages.extend(page);
            lives
        });
        pages
    }

    /// Whether a page takes more ids. It was opened before the cache's clock for it began, so that the last of its ids, too, stays for
    /// the window.
    fn is_open(&self, page: &Page) -> bool {
        page.age() < self.window / SLICES_PER_WINDOW && page.len() < self.page_capacity
    }

    fn open_page(&self, index: &mut Index, partition: i32) -> Arc<Page> {
        let page = Arc::new(Page::open(&self.held));
        self.pages.insert(index.next_page, Arc::clone(&page));
        index.partitions.entry(partition).or_default().pages.push_back(index.next_page);
        index.next_page += 1;
        page
    }

    /// Lets the oldest pages go until the capacity suffices.
    fn evict(&self, index: &mut Index) {
        if self.held.load(Ordering::Relaxed) > self.capacity {
            // Pages whose time is over may not have been let go yet.
            self.pages.run_pending_tasks();
        }
        while self.held.load(Ordering::Relaxed) > self.capacity {
            let numbers = index.partitions.values_mut().map(|partition| &mut partition.pages);
            let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()).min_by_key(|numbers| numbers[0]) else {
                return;
            };
            let Some(oldest) = numbers.pop_front() else { return };
            let gone = self.pages.get(&oldest).map_or(0, |page| page.clear());
            self.evicted_early.fetch_add(gone, Ordering::Relaxed);
            self.pages.invalidate(&oldest);
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread::sleep;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::dedup::MAX_TOPICS;

    const HOUR: Duration = Duration::from_secs(3600);

    fn entry(key: u128, fingerprint: u64) -> Entry {
        Entry { key, fingerprint }
    }

    const DUPLICATE: Judgement = Judgement::Duplicate { first: false };

    /// Everything is seen in one topic unless it is told otherwise.
    const TOPIC: &str = "code.packets.v1";
    const MIRROR: &str = "eu-west.code.packets.v1";

    fn judge_in(memory: &Memory, partition: i32, topic: &str, entries: &[Entry]) -> Vec<Judgement> {
        let topic = memory.topic(topic).unwrap();
        memory.judge(partition, &entries.iter().map(|entry| (topic, *entry)).collect::<Vec<_>>())
    }

    fn judge(memory: &Memory, key: u128, fingerprint: u64) -> Judgement {
        judge_in(memory, 0, TOPIC, &[entry(key, fingerprint)])[0]
    }

    #[test]
    fn an_id_is_new_once_then_a_duplicate_then_a_conflict_with_other_content() {
        let memory = Memory::new(1000, HOUR);
        assert_eq!(judge(&memory, 1, 7), Judgement::New);
        memory.publish(0, TOPIC, &[entry(1, 7)]);
        assert_eq!(judge(&memory, 1, 7), DUPLICATE);
        assert_eq!(judge(&memory, 1, 8), Judgement::Conflict { first: false, accepted: 7 });
        assert_eq!(
            judge_in(&memory, 1, TOPIC, &[entry(1, 7)]),
            [Judgement::New],
            "partitions know nothing of each other"
        );
    }

    #[test]
    fn a_batch_sees_its_own_ids_and_leaves_no_trace() {
        let memory = Memory::new(1000, HOUR);
        let [here, there] = [TOPIC, MIRROR].map(|topic| memory.topic(topic).unwrap());
        let conflict = |first| Judgement::Conflict { first, accepted: 7 };
        let batch = [
            ((here, entry(1, 7)), Judgement::New),
            ((here, entry(1, 7)), DUPLICATE),
            ((there, entry(1, 8)), conflict(true)),
            ((there, entry(1, 8)), conflict(false)),
            ((here, entry(1, 8)), conflict(false)),
            ((there, entry(1, 7)), DUPLICATE),
            ((here, entry(2, 7)), Judgement::New),
        ];
        let (batch, judged): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        assert_eq!(memory.judge(0, &batch), judged);
        assert_eq!(memory.judge(0, &batch), judged);
        assert!(memory.is_empty());
    }

    #[test]
    fn an_id_is_the_first_once_in_every_topic_whatever_page_it_moves_to() {
        // A page takes one id.
        let memory = Memory::new(16, HOUR);
        let topics = (0..MAX_TOPICS).map(|n| format!("region-{n}.code.packets.v1"));
        for (n, topic) in topics.enumerate() {
            let first = if n == 0 { Judgement::New } else { Judgement::Duplicate { first: true } };
            assert_eq!(judge_in(&memory, 0, &topic, &[entry(1, 7), entry(1, 7)]), [first, DUPLICATE]);
            memory.publish(0, &topic, &[entry(1, 7)]);
            memory.publish(0, &topic, &[entry(100 + n as u128, 7)]);
        }
        let seen =
            |n: usize| judge_in(&memory, 0, &format!("region-{n}.code.packets.v1"), &[entry(1, 7)]) == [DUPLICATE];
        assert!((0..MAX_TOPICS).all(seen));
        assert_eq!((memory.len(), memory.evicted_early()), (9, 0));
    }

    #[test]
    fn an_id_that_is_accepted_anew_begins_anew() {
        let memory = Memory::new(1000, HOUR);
        memory.publish(0, TOPIC, &[entry(1, 7)]);
        memory.publish(0, MIRROR, &[entry(1, 8)]);
        assert_eq!(judge(&memory, 1, 8), Judgement::Duplicate { first: true });
    }

    #[test]
    fn ids_pushed_out_by_the_capacity_are_counted() {
        let memory = Memory::new(10, HOUR);
        memory.publish(0, TOPIC, &(0..1000).map(|key| entry(key, 0)).collect::<Vec<_>>());
        assert_eq!(memory.len(), 10);
        assert_eq!(memory.evicted_early(), 990);
        assert_eq!(judge(&memory, 999, 0), DUPLICATE, "the newest stay");
    }

    #[test]
    fn the_oldest_page_of_any_partition_leaves_first() {
        let memory = Memory::new(16, HOUR);
        for (partition, key) in (0..17).map(|key| (key % 3, key as u128)) {
            memory.publish(partition, TOPIC, &[entry(key, 0)]);
        }
        assert_eq!(judge(&memory, 0, 0), Judgement::New);
        assert_eq!(judge_in(&memory, 1, TOPIC, &[entry(1, 0)]), [DUPLICATE]);
        assert_eq!(memory.evicted_early(), 1);
    }

    #[test]
    fn an_id_leaves_when_its_window_ends_and_that_is_no_alarm() {
        let memory = Memory::new(10, Duration::from_millis(20));
        memory.publish(0, TOPIC, &[entry(1, 7)]);
        sleep(Duration::from_millis(40));
        assert_eq!(judge(&memory, 1, 8), Judgement::New);
        assert_eq!((memory.len(), memory.evicted_early()), (0, 0));
    }

    #[test]
    fn a_replay_position_never_goes_back() {
        let memory = Memory::new(1000, HOUR);
        assert_eq!(memory.replayed_to(3), None);
        memory.mark_replayed(3, 10);
        memory.mark_replayed(3, 5);
        assert_eq!(memory.replayed_to(3), Some(10));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Publish(i32, Vec<(u8, u64)>),
        Sleep(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ids = prop::collection::vec((any::<u8>(), 0..3_u64), 0..40);
        let step = prop_oneof![
            3 => (0..2_i32, ids).prop_map(|(partition, ids)| Step::Publish(partition, ids)),
            1 => (0..4_u64).prop_map(Step::Sleep),
        ];
        prop::collection::vec(step, 1..40)
    }

    fn entries(ids: &[(u8, u64)]) -> Vec<Entry> {
        ids.iter().map(|(key, fingerprint)| entry((*key).into(), *fingerprint)).collect()
    }

    /// What the memory holds under `key`, asked with fingerprints that no step uses twice.
    fn recall(memory: &Memory, partition: i32, key: u8) -> Option<u64> {
        (0..3).find(|fingerprint| judge_in(memory, partition, TOPIC, &[entry(key.into(), *fingerprint)]) == [DUPLICATE])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        /// The clock is the machine's, so the model knows when each publication began and ended, and claims nothing in between.
        #[test]
        fn ids_live_for_the_window_and_at_most_an_eighth_longer(steps in steps()) {
            let window = Duration::from_millis(16);
            let memory = Memory::new(1_000_000, window);
            let mut model: HashMap<(i32, u8), (u64, Instant, Instant)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Sleep(millis) => sleep(Duration::from_millis(millis)),
                    Step::Publish(partition, ids) => {
                        let before = Instant::now();
                        memory.publish(partition, TOPIC, &entries(&ids));
                        let after = Instant::now();
                        model.extend(ids.iter().map(|(id, fingerprint)| ((partition, *id), (*fingerprint, before, after))));
                    }
                }
                for ((partition, id), (fingerprint, before, after)) in &model {
                    let asked = Instant::now();
                    let known = recall(&memory, *partition, *id);
                    prop_assert!(known.is_none_or(|known| known == *fingerprint));
                    prop_assert!(known.is_some() || before.elapsed() >= window, "forgotten before its window ended");
                    let longest = window + window / SLICES_PER_WINDOW;
                    prop_assert!(known.is_none() || asked - *after <= longest, "remembered after its window ended");
                }
            }
            sleep(window * 2);
            prop_assert_eq!((memory.len(), memory.evicted_early()), (0, 0));
        }

        #[test]
        fn the_newest_ids_up_to_the_capacity_are_held_and_the_others_counted(capacity in 1..200_u64, steps in steps()) {
            let memory = Memory::new(capacity, HOUR);
            // Ids in the order of their last publication.
            let mut model: Vec<(u8, u64)> = Vec::new();
            let mut evicted = 0;
            for step in steps {
                let Step::Publish(_, ids) = step else { continue };
                for id in ids {
                    memory.publish(0, TOPIC, &entries(&[id]));
                    model.retain(|(key, _)| *key != id.0);
                    model.push(id);
                    let held = memory.len() as usize;
                    prop_assert!(held as u64 <= capacity);
                    let gone = model.len() - held;
                    prop_assert!(gone as u64 <= capacity.div_ceil(PAGES_PER_CAPACITY), "more than a page left at once");
                    evicted += model.drain(..gone).count() as u64;
                    prop_assert_eq!(memory.evicted_early(), evicted);
                }
                for key in 0..=255 {
                    let expected = model.iter().find(|(known, _)| *known == key).map(|(_, fingerprint)| *fingerprint);
                    prop_assert_eq!(recall(&memory, 0, key), expected);
                }
            }
        }
    }
}
