//! The cycle's ports over the simulated broker. Every call is a place at which anything may happen first.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coderelay_runtime::flaw;
use coderelay_schemas::ledger::Entry;
use processor::decode::{Rejection, Row, decode};
use processor::kafka::Subscription;
use processor::pace::StoreSample;
use processor::ports::{Clock, Fault, Ledger, Polled, RowOutcome, Source, Store, Transaction, Unavailable};
use processor::record::{Record, TopicPartition};

use crate::broker::{Slot, State, TOPICS, Txn};
use crate::driver::{Flaw, START_MS, Shared};

pub struct SimSource {
    shared: Rc<Shared>,
    member: usize,
    generation: u64,
    positions: BTreeMap<TopicPartition, i64>,
    withheld: BTreeSet<TopicPartition>,
    events: VecDeque<Polled>,
    paused: bool,
}

impl SimSource {
    pub fn join(shared: &Rc<Shared>, member: usize) -> Self {
        Self {
            shared: Rc::clone(shared),
            member,
            generation: 0,
            positions: BTreeMap::new(),
            withheld: BTreeSet::new(),
            events: VecDeque::new(),
            paused: false,
        }
    }

    /// Notices that the generation has changed, rejoining it if need be.
    fn follow(&mut self) {
        let known = self.shared.broker.borrow().members.contains_key(&self.member);
        if !known {
            let mut members: Vec<usize> = self.shared.broker.borrow().members.keys().copied().collect();
            members.push(self.member);
            self.shared.rebalance(&members);
        }
        let broker = self.shared.broker.borrow();
        if self.generation == broker.generation {
            return;
        }
        self.generation = broker.generation;
        self.events.push_back(Polled::Revoked(std::mem::take(&mut self.positions).into_keys().collect()));
        let assigned = broker.members[&self.member].clone();
        drop(broker);
        if self.shared.flaw != Flaw::NothingWithheld {
            self.withheld = Subscription::new(TOPICS.map(str::to_owned).to_vec(), TOPICS[0]).withheld(&assigned);
        }
        if self.shared.flaw != Flaw::UnstableOffsets {
            self.shared.settle_offsets(&assigned);
        }
        let committed = &self.shared.broker.borrow().committed;
        self.positions = assigned.iter().map(|tp| (tp.clone(), committed.get(tp).copied().unwrap_or(0))).collect();
        self.events.push_back(Polled::Assigned(assigned));
    }
}

impl Source for SimSource {
    type Membership = u64;

    fn poll(&mut self, _: Duration) -> Result<Polled, Fault> {
        self.shared.anything(self.member)?;
        self.follow();
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        // Now and then a record slips through a pause.
        if self.paused && !self.shared.chance(8) {
            return Ok(Polled::Nothing);
        }
        let broker = self.shared.broker.borrow();
        let ready = |(tp, at): &(&TopicPartition, &i64)| {
            !self.withheld.contains(*tp) && broker.sources.get(*tp).is_some_and(|log| (**at as usize) < log.len())
        };
        let waiting: Vec<TopicPartition> = self.positions.iter().filter(ready).map(|(tp, _)| tp.clone()).collect();
        if waiting.is_empty() {
            return Ok(Polled::Nothing);
        }
        let tp = &waiting[self.shared.choose(waiting.len())];
        let position = self.positions.get_mut(tp).unwrap();
        let record = broker.sources[tp][*position as usize].clone();
        *position += 1;
        Ok(Polled::Record(record))
    }

    fn membership(&mut self) -> Option<u64> {
        // A frozen member does not know yet that its generation is over; one that has heard of it does.
        let current = self.shared.broker.borrow().generation == self.generation;
        (current || !self.shared.chance(4)).then_some(self.generation)
    }

    fn stable_offsets(&mut self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Fault> {
        self.shared.anything(self.member)?;
        if self.shared.flaw != Flaw::UnstableOffsets {
            self.shared.settle_offsets(partitions);
        }
        let committed = &self.shared.broker.borrow().committed;
        Ok(partitions.iter().filter_map(|tp| Some((tp.clone(), *committed.get(tp)?))).collect())
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Fault> {
        self.paused = false;
        Ok(())
    }

    fn backlog(&self) -> u64 {
        u64::from(self.shared.expires && self.shared.chance(2))
    }
}

pub struct SimLedger {
    pub shared: Rc<Shared>,
    pub member: usize,
}

impl Ledger for SimLedger {
    fn replay(
        &mut self,
        from: &BTreeMap<i32, Option<i64>>,
        _: SystemTime,
        visit: &mut dyn FnMut(i32, &str, &[Entry]),
    ) -> Result<BTreeMap<i32, i64>, Fault> {
        let mut ends = BTreeMap::new();
        if self.shared.flaw == Flaw::NoReplay {
            return Ok(ends);
        }
        for (partition, known) in from {
            self.shared.anything(self.member)?;
            let high = self.shared.broker.borrow().ledger.get(partition).map_or(0, Vec::len);
            let waits = !flaw::is(flaw::Flaw::ReplayBeforeOffsets);
            if waits && self.shared.flaw != Flaw::ReplayWithoutWaiting {
                self.shared.settle_ledger(*partition, high);
            }
            let broker = self.shared.broker.borrow();
            let stable = broker.last_stable(*partition);
            let start = (known.unwrap_or(0) as usize).min(stable);
            for (topic, entries) in broker.committed_entries(*partition, start, stable) {
                let named = self.shared.flaw != Flaw::UnnamedTopics;
                visit(*partition, if named { &topic } else { TOPICS[0] }, &entries);
            }
            ends.insert(*partition, stable as i64);
        }
        Ok(ends)
    }
}

pub struct SimStore {
    pub shared: Rc<Shared>,
}

impl Store for SimStore {
    fn write(&mut self, rows: &[&Row], _: usize) -> Result<(Vec<RowOutcome>, StoreSample), Unavailable> {
        // A crash inside a write shows at the next call; here it only means that some rows were written.
        let fails = self.shared.chance(16);
        let written = if fails { self.shared.choose(rows.len() + 1) } else { rows.len() };
        for row in &rows[..written] {
            self.shared.store(row);
        }
        if fails {
            return Err(Unavailable("away".into()));
        }
        let sample = StoreSample { records: rows.len(), slowest: Duration::ZERO, troubled: false };
        Ok((vec![RowOutcome::Stored; rows.len()], sample))
    }

    fn probe(&mut self) -> Result<(), Unavailable> {
        if self.shared.chance(4) { Err(Unavailable("still away".into())) } else { Ok(()) }
    }
}

pub struct SimTransaction {
    shared: Rc<Shared>,
    member: usize,
    epoch: u64,
    txn: usize,
}

impl SimTransaction {
    pub fn open(shared: &Rc<Shared>, member: usize) -> Self {
        let epoch = shared.broker.borrow_mut().init_producer(member);
        Self { shared: Rc::clone(shared), member, epoch, txn: usize::MAX }
    }

    /// Anything may happen; then the broker checks the epoch and that the transaction is open.
    fn step(&mut self) -> Result<(), Fault> {
        self.shared.anything(self.member)?;
        if self.shared.chance(60) {
            return Err(Fault::Restart("a request failed".into()));
        }
        let broker = self.shared.broker.borrow();
        let open = broker.txns.get(self.txn).is_none_or(|txn| txn.state == State::Open);
        if broker.epochs[&self.member] != self.epoch || !open {
            return Err(Fault::Restart("the transaction is over".into()));
        }
        Ok(())
    }
}

impl Transaction for SimTransaction {
    type Membership = u64;

    fn begin(&mut self) -> Result<(), Fault> {
        if let Some(previous) = (self.txn != usize::MAX).then_some(self.txn) {
            // The coordinator admits nothing new before the last transaction is marked everywhere.
            self.shared.broker.borrow_mut().mark_all(previous);
        }
        self.txn = usize::MAX;
        self.step()?;
        let mut broker = self.shared.broker.borrow_mut();
        self.txn = broker.txns.len();
        broker.txns.push(Txn {
            producer: self.member,
            epoch: self.epoch,
            state: State::Open,
            offsets: BTreeMap::new(),
            unmarked: [].into(),
            published: Vec::new(),
            dead: Vec::new(),
        });
        Ok(())
    }

    fn publish(&mut self, record: &Record) -> Result<(), Fault> {
        self.step()?;
        let packet = decode(record, &coderelay_schemas::validate::PacketLimits::default()).unwrap();
        self.shared.broker.borrow_mut().txns[self.txn].published.push((packet.entry.key, packet.entry.fingerprint));
        Ok(())
    }

    fn dead_letter(&mut self, record: &Record, rejection: &Rejection) -> Result<(), Fault> {
        self.step()?;
        let letter = (record.source.clone(), record.offset, rejection.reason);
        self.shared.broker.borrow_mut().txns[self.txn].dead.push(letter);
        Ok(())
    }

    fn remember(&mut self, source: &TopicPartition, entries: &[Entry]) -> Result<(), Fault> {
        self.step()?;
        let slot = Slot::Entries(self.txn, Arc::clone(&source.topic), entries.to_vec());
        self.shared.broker.borrow_mut().ledger.entry(source.partition).or_default().push(slot);
        Ok(())
    }

    fn send_offsets(&mut self, offsets: &BTreeMap<TopicPartition, i64>, membership: &u64) -> Result<(), Fault> {
        self.step()?;
        let mut broker = self.shared.broker.borrow_mut();
        if broker.generation != *membership && self.shared.flaw != Flaw::NoFencing {
            return Err(Fault::Restart("the generation is over".into()));
        }
        broker.txns[self.txn].offsets.clone_from(offsets);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.step()?;
        let lost = || Err(Fault::Restart("no answer to the commit".into()));
        match self.shared.choose(24) {
            // The request is lost, or it is still on its way.
            23 => return lost(),
            22 => {
                self.shared.broker.borrow_mut().strays.push((self.member, self.epoch));
                return lost();
            }
            _ => {}
        }
        self.shared.broker.borrow_mut().end(self.txn, State::Committed);
        // The answer is lost, though it was done.
        if self.shared.chance(24) { lost() } else { Ok(()) }
    }

    #[cfg(feature = "flaws")]
    fn reuse(&mut self) -> Result<(), Fault> {
        self.shared.anything(self.member)?;
        let mut broker = self.shared.broker.borrow_mut();
        if broker.epochs[&self.member] == self.epoch && broker.txns[self.txn].state == State::Open {
            broker.end(self.txn, State::Aborted);
        }
        Ok(())
    }
}

/// A clock that advances whenever it is read; its time of day is that of the producers.
pub struct SimClock {
    pub shared: Rc<Shared>,
    pub start: Instant,
    pub ticks: Cell<u32>,
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        self.ticks.set(self.ticks.get() + 1);
        self.start + Duration::from_millis(self.ticks.get().into())
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(START_MS + self.shared.time_ms.get())
    }

    fn sleep(&self, duration: Duration) {
        self.ticks.set(self.ticks.get() + duration.as_millis() as u32);
    }
}
