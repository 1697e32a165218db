//! A Kafka in memory, with what matters for exactly-once: transactions whose markers arrive late and one by one, pending offsets,
//! generations that fence, epochs that fence, and end-of-transaction requests that are answered late or never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::Entry;
use processor::record::{Record, TopicPartition};

/// The region's own topic, and the other's as it is mirrored here.
pub const TOPICS: [&str; 2] = ["code.packets.v1", "eu-west.code.packets.v1"];
pub const PARTITIONS: i32 = 2;

pub type Id = u128;

/// Where a transaction's end has to be marked before it takes effect there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Offsets,
    Ledger(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    Committed,
    Aborted,
}

#[derive(Debug)]
pub struct Txn {
    pub producer: usize,
    pub epoch: u64,
    pub state: State,
    pub offsets: BTreeMap<TopicPartition, i64>,
    /// Marks that are still missing; meaningful once the state is not open.
    pub unmarked: BTreeSet<Mark>,
    pub published: Vec<(Id, u64)>,
    pub dead: Vec<(TopicPartition, i64, DlqReason)>,
}

#[derive(Debug)]
pub enum Slot {
    /// Of a transaction and a source topic.
    Entries(usize, Arc<str>, Vec<Entry>),
    Marker,
}

#[derive(Debug, Default)]
pub struct Broker {
    pub sources: BTreeMap<TopicPartition, Vec<Record>>,
    pub committed: BTreeMap<TopicPartition, i64>,
    pub generation: u64,
    /// The partitions of each member of the current generation.
    pub members: BTreeMap<usize, Vec<TopicPartition>>,
    pub epochs: BTreeMap<usize, u64>,
    pub txns: Vec<Txn>,
    /// What committed transactions have published.
    pub visible: BTreeSet<(Id, u64)>,
    pub ledger: BTreeMap<i32, Vec<Slot>>,
    /// Commits that were sent but not answered, by producer and epoch.
    pub strays: Vec<(usize, u64)>,
}

impl Broker {
    /// Ends a transaction: decided at once, visible partition by partition as markers are written.
    pub fn end(&mut self, txn: usize, state: State) {
        let mut marks: BTreeSet<Mark> = BTreeSet::new();
        for (partition, slots) in &self.ledger {
            if slots.iter().any(|slot| matches!(slot, Slot::Entries(of, ..) if *of == txn)) {
                marks.insert(Mark::Ledger(*partition));
            }
        }
        let txn = &mut self.txns[txn];
        assert_eq!(txn.state, State::Open);
        txn.state = state;
        if !txn.offsets.is_empty() {
            marks.insert(Mark::Offsets);
        }
        if state == State::Committed {
            self.visible.extend(&txn.published);
        }
        txn.unmarked = marks;
    }

    /// Writes one missing marker.
    pub fn mark(&mut self, txn: usize, mark: Mark) {
        if !self.txns[txn].unmarked.remove(&mark) {
            return;
        }
        match mark {
            Mark::Offsets if self.txns[txn].state == State::Committed => {
                let offsets = self.txns[txn].offsets.clone();
                self.committed.extend(offsets);
            }
            Mark::Offsets => {}
            Mark::Ledger(partition) => self.ledger.entry(partition).or_default().push(Slot::Marker),
        }
    }

    pub fn mark_all(&mut self, txn: usize) {
        for mark in self.txns[txn].unmarked.clone() {
            self.mark(txn, mark);
        }
    }

    /// The broker's own time-out: aborts an open transaction and fences its producer.
    pub fn expire(&mut self, txn: usize) {
        if self.txns[txn].state == State::Open {
            *self.epochs.entry(self.txns[txn].producer).or_default() += 1;
            self.end(txn, State::Aborted);
        }
    }

    /// A commit request arrives late. It ends whatever its producer has open under that epoch, be it another transaction.
    pub fn deliver_stray(&mut self, stray: usize) {
        let (producer, epoch) = self.strays.remove(stray);
        let open = |txn: &Txn| txn.producer == producer && txn.epoch == epoch && txn.state == State::Open;
        if self.epochs.get(&producer) == Some(&epoch)
            && let Some(txn) = self.txns.iter().position(open)
        {
            self.end(txn, State::Committed);
        }
    }

    /// `init_transactions`: raises the epoch, aborts what is open, finishes what is ending.
    pub fn init_producer(&mut self, producer: usize) -> u64 {
        for txn in 0..self.txns.len() {
            if self.txns[txn].producer == producer {
                if self.txns[txn].state == State::Open {
                    self.end(txn, State::Aborted);
                }
                self.mark_all(txn);
            }
        }
        let epoch = self.epochs.entry(producer).or_default();
        *epoch += 1;
        *epoch
    }

    /// Whether the offset topic holds undecided offsets of any of `partitions`.
    pub fn pending(&self, partitions: &[TopicPartition]) -> Vec<usize> {
        let touches = |txn: &Txn| partitions.iter().any(|partition| txn.offsets.contains_key(partition));
        let undecided = |txn: &Txn| txn.state == State::Open || txn.unmarked.contains(&Mark::Offsets);
        (0..self.txns.len()).filter(|txn| undecided(&self.txns[*txn]) && touches(&self.txns[*txn])).collect()
    }

    /// The first offset of a ledger partition that belongs to a transaction without its marker there.
    pub fn last_stable(&self, partition: i32) -> usize {
        let slots = self.ledger.get(&partition).map_or(&[][..], Vec::as_slice);
        let unstable = |slot: &Slot| match slot {
            Slot::Entries(txn, ..) => {
                let txn = &self.txns[*txn];
                txn.state == State::Open || txn.unmarked.contains(&Mark::Ledger(partition))
            }
            Slot::Marker => false,
        };
        slots.iter().position(unstable).unwrap_or(slots.len())
    }

    /// What a `read_committed` reader gets between two offsets, the second at most the last stable one.
    pub fn committed_entries(&self, partition: i32, from: usize, to: usize) -> Vec<(Arc<str>, Vec<Entry>)> {
        let slots = self.ledger.get(&partition).map_or(&[][..], Vec::as_slice);
        let committed = slots.get(from..to).unwrap_or_default().iter().filter_map(|slot| match slot {
            Slot::Entries(txn, topic, entries) if self.txns[*txn].state == State::Committed => {
                Some((Arc::clone(topic), entries.clone()))
            }
            _ => None,
        });
        committed.collect()
    }

    /// Starts a new generation with these members, of whom `informed` know of the mirrored topic, too. Whoever knows of a topic gets a
    /// share of its partitions, so that the same partition of both may go to two members.
    pub fn rebalance(&mut self, members: &[usize], informed: &[usize]) {
        self.generation += 1;
        self.members = members.iter().map(|member| (*member, Vec::new())).collect();
        for (topic, knowing) in TOPICS.into_iter().zip([members, informed]) {
            for (partition, owner) in (0..PARTITIONS).zip(knowing.iter().cycle()) {
                self.members.entry(*owner).or_default().push(TopicPartition::new(topic, partition));
            }
        }
    }
}
