//! Runs one schedule: processes, producers and everything that may happen to them, all from one string of choices.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::validate::PacketLimits;
use coderelay_schemas::{headers, pb};
use processor::batch::BatchLimits;
use processor::cycle::{Cycle, CycleLimits, Expiry};
use processor::decode::{Row, decode};
use processor::dedup::Memory;
use processor::metrics::Metrics;
use processor::pace::{Pace, PaceLimits};
use processor::ports::{Fault, World};
use processor::record::{Headers, Record, TopicPartition};
use prost::Message;

use crate::broker::{Broker, Mark, PARTITIONS, Slot, State, TOPICS};
use crate::check::{check, check_memory, key, merge};
use crate::ports::{SimClock, SimLedger, SimSource, SimStore, SimTransaction};

const PROCESSES: usize = 2;
/// Milliseconds since the epoch at which a schedule begins.
pub const START_MS: u64 = 1_700_000_000_000;
/// Where records expire, those that are older, in ms. About two more are produced meanwhile.
const MAX_AGE_MS: u64 = 4;

/// A deliberate mistake in the world around the cycle, to show that the model would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    NoReplay,
    ReplayWithoutWaiting,
    UnstableOffsets,
    NoFencing,
    IgnoredWriteTimes,
    UnnamedTopics,
    NothingWithheld,
    ClocksRunBack,
}

type SimCycle = Cycle<SimSource, SimLedger, SimStore, SimTransaction, SimClock>;

struct Process {
    memory: Arc<Memory>,
    cycle: Option<SimCycle>,
}

pub struct Shared {
    pub broker: RefCell<Broker>,
    pub rows: RefCell<BTreeMap<(String, u128), Row>>,
    pub flaw: Flaw,
    pub reuses_ids: bool,
    /// Whether records expire now and then; there is one region then, and its clocks are right.
    pub expires: bool,
    /// Since [`START_MS`].
    pub time_ms: Cell<u64>,
    slow: bool,
    choices: Vec<u8>,
    at: Cell<usize>,
    /// A process that is running has been taken out of its place.
    processes: RefCell<Vec<Option<Process>>>,
    crashed: RefCell<[bool; PROCESSES]>,
    depth: Cell<usize>,
    /// Every packet that was sent, once for each partition and content.
    pub sent: RefCell<HashSet<(TopicPartition, Entry)>>,
    violation: RefCell<Option<String>>,
}

static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Arc::new(Metrics::new(&fresh_memory())));

fn fresh_memory() -> Arc<Memory> {
    Arc::new(Memory::new(10_000, Duration::from_secs(3600)))
}

impl Shared {
    /// The next choice among `n`; the first when the choices have run out, which is always the harmless one.
    pub fn choose(&self, n: usize) -> usize {
        let choice = self.choices.get(self.at.get()).copied().unwrap_or(0);
        self.at.set(self.at.get() + 1);
        usize::from(choice) % n.max(1)
    }

    /// True once in `n` times.
    pub fn chance(&self, n: usize) -> bool {
        self.choose(n) == n - 1
    }

    fn is_over(&self) -> bool {
        self.at.get() >= self.choices.len()
    }

    /// A row as CQL writes it.
    pub fn store(&self, row: &Row) {
        let mut rows = self.rows.borrow_mut();
        let stored = match rows.get(&key(row)) {
            Some(stored) if self.flaw != Flaw::IgnoredWriteTimes => merge(stored, row),
            _ => row.clone(),
        };
        rows.insert(key(row), stored);
    }

    /// What may happen at any moment: to the broker, to the group, to the other process, to this one.
    pub fn anything(&self, member: usize) -> Result<(), Fault> {
        if self.is_over() {
            return Ok(());
        }
        match self.choose(40) {
            39 => {
                self.crashed.borrow_mut()[member] = true;
                return Err(Fault::Restart("crash".into()));
            }
            38 => return Err(Fault::Restart("some doubt".into())),
            37 => {
                let members: Vec<usize> = (0..PROCESSES).filter(|_| self.choose(2) == 0).collect();
                self.rebalance(&members);
            }
            36 => {
                let count = self.broker.borrow().strays.len();
                if count > 0 {
                    self.broker.borrow_mut().deliver_stray(self.choose(count));
                }
            }
            35 => {
                let open = self.with_state(State::Open);
                if !open.is_empty() {
                    self.broker.borrow_mut().expire(open[self.choose(open.len())]);
                }
            }
            30..35 => self.write_a_marker(),
            24..30 if self.depth.get() < 3 => self.turn(self.choose(PROCESSES)),
            _ => {}
        }
        Ok(())
    }

    /// A new generation with these members, who may learn of the mirrored topic one after the other.
    pub fn rebalance(&self, members: &[usize]) {
        let split = self.chance(4);
        let informed: Vec<usize> = members.iter().copied().filter(|_| !split || self.choose(2) == 0).collect();
        self.broker.borrow_mut().rebalance(members, &informed);
    }

    fn with_state(&self, state: State) -> Vec<usize> {
        let broker = self.broker.borrow();
        (0..broker.txns.len()).filter(|txn| broker.txns[*txn].state == state).collect()
    }

    fn write_a_marker(&self) {
        let mut broker = self.broker.borrow_mut();
        let missing: Vec<_> = broker
            .txns
            .iter()
            .enumerate()
            .flat_map(|(txn, of)| of.unmarked.iter().map(move |mark| (txn, *mark)))
            .collect();
        if !missing.is_empty() {
            let (txn, mark) = missing[self.choose(missing.len())];
            broker.mark(txn, mark);
        }
    }

    /// What a reader of stable offsets waits for: commits that finish, and open transactions that someone ends.
    pub fn settle_offsets(&self, partitions: &[TopicPartition]) {
        let pending = self.broker.borrow().pending(partitions);
        for txn in pending {
            self.settle(txn);
            self.broker.borrow_mut().mark(txn, Mark::Offsets);
        }
    }

    /// What a reader of the ledger waits for, up to `high`.
    pub fn settle_ledger(&self, partition: i32, high: usize) {
        loop {
            let broker = self.broker.borrow();
            let stable = broker.last_stable(partition);
            if stable >= high {
                return;
            }
            let Slot::Entries(txn, ..) = broker.ledger[&partition][stable] else { unreachable!("a marker is stable") };
            drop(broker);
            self.settle(txn);
            self.broker.borrow_mut().mark(txn, Mark::Ledger(partition));
        }
    }

    /// Somebody ends an open transaction: a late commit that was on its way, or the broker by its time-out.
    fn settle(&self, txn: usize) {
        if self.broker.borrow().txns[txn].state != State::Open {
            return;
        }
        let (producer, epoch) = (self.broker.borrow().txns[txn].producer, self.broker.borrow().txns[txn].epoch);
        let stray = self.broker.borrow().strays.iter().position(|stray| *stray == (producer, epoch));
        if let Some(stray) = stray
            && self.choose(2) == 1
        {
            self.broker.borrow_mut().deliver_stray(stray);
        }
        self.broker.borrow_mut().expire(txn);
    }

    /// One turn of a process, unless it is in the middle of one already.
    fn turn(&self, number: usize) {
        let Some(mut process) = self.processes.borrow_mut()[number].take() else { return };
        self.depth.set(self.depth.get() + 1);
        let outcome = process.cycle.as_mut().map(Cycle::turn);
        if matches!(outcome, Some(Err(_))) {
            process.cycle = None;
        }
        if std::mem::take(&mut self.crashed.borrow_mut()[number]) {
            process = Process { memory: fresh_memory(), cycle: None };
        }
        if let Err(violation) = check_memory(self, &process.memory) {
            self.violation.borrow_mut().get_or_insert(violation);
        }
        self.depth.set(self.depth.get() - 1);
        self.processes.borrow_mut()[number] = Some(process);
    }
}

fn revive(shared: &Rc<Shared>, number: usize) {
    let memory = match &shared.processes.borrow()[number] {
        Some(Process { memory, cycle: None }) => Arc::clone(memory),
        _ => return,
    };
    let world = World {
        transaction: SimTransaction::open(shared, number),
        source: SimSource::join(shared, number),
        ledger: SimLedger { shared: Rc::clone(shared), member: number },
        store: SimStore { shared: Rc::clone(shared) },
        clock: SimClock { shared: Rc::clone(shared), start: Instant::now(), ticks: Cell::new(0) },
    };
    let limits = CycleLimits {
        batch: BatchLimits { records: 4, bytes: 1 << 20 },
        linger: Duration::from_millis(3),
        window: Duration::from_secs(3600),
        packet: PacketLimits::default(),
        expiry: shared.expires.then_some(Expiry { backlog: 0, max_age: Duration::from_millis(MAX_AGE_MS) }),
    };
    // A slow pace lets the cycle idle with fetching paused, through which rebalances bring records all the same.
    let ceiling = shared.slow.then_some(0.4);
    let pace = PaceLimits { floor: 0.1, ceiling, latency_target: Duration::from_secs(1), concurrency: 1 };
    let pace = Pace::new(pace, Instant::now());
    let cycle = Cycle::new(world, memory, Arc::clone(&METRICS), limits, pace, || false);
    shared.processes.borrow_mut()[number].as_mut().unwrap().cycle = Some(cycle);
}

/// The clocks of ingests differ, and two copies may have the same time. Nothing is promised of what expires then, so there they are right.
fn timestamp_ms(shared: &Shared) -> i64 {
    if !shared.expires {
        return (START_MS + shared.choose(4) as u64) as i64;
    }
    let now = shared.time_ms.get() + 1 + shared.choose(3) as u64;
    shared.time_ms.set(now);
    let wrong = if shared.flaw == Flaw::ClocksRunBack { shared.choose(4) as u64 } else { 0 };
    (START_MS + now - wrong) as i64
}

/// Appends a packet, perhaps one that was sent before, perhaps through the other region, perhaps with other content.
fn produce(shared: &Shared) {
    let number = shared.choose(12) as u8;
    let content = if shared.reuses_ids && shared.chance(6) { b"other".as_slice() } else { b"content".as_slice() };
    let region = if shared.expires { 0 } else { shared.choose(2) };
    let topic = TOPICS[region];
    let partition = i32::from(number) % PARTITIONS;
    let packet = pb::CodePacket {
        repo_id: format!("repo-{partition}"),
        content: Bytes::copy_from_slice(content),
        packet_id: vec![number; 16].into(),
        ..Default::default()
    };
    let source = TopicPartition::new(topic, partition);
    let mut broker = shared.broker.borrow_mut();
    let log = broker.sources.entry(source.clone()).or_default();
    let mut checked = Headers::default();
    checked.push(headers::CHECKED, Some(headers::CHECKED_GZIP.as_bytes()));
    checked.push(headers::REGION, Some(["us-east", "eu-west"][region].as_bytes()));
    let record = Record {
        source: source.clone(),
        offset: log.len() as i64,
        timestamp_ms: Some(timestamp_ms(shared)),
        key: Some(packet.repo_id.clone().into_bytes().into()),
        value: Some(packet.encode_to_vec().into()),
        headers: checked,
    };
    let entry = decode(&record, &PacketLimits::default()).unwrap().entry;
    shared.sent.borrow_mut().insert((source, entry));
    log.push(record);
}

/// Runs the schedule that `choices` spell, then lets everything come to rest, then checks.
pub fn run(choices: &[u8], flaw: Flaw) -> Result<(), String> {
    let shared = Rc::new(Shared {
        broker: RefCell::default(),
        rows: RefCell::default(),
        flaw,
        reuses_ids: choices.first().is_some_and(|choice| choice % 2 == 1),
        expires: choices.get(2).is_some_and(|choice| choice % 4 == 3),
        time_ms: Cell::new(0),
        slow: choices.get(1).is_some_and(|choice| choice % 4 == 3),
        choices: choices.to_vec(),
        at: Cell::new(0),
        processes: RefCell::new(
            (0..PROCESSES).map(|_| Some(Process { memory: fresh_memory(), cycle: None })).collect(),
        ),
        crashed: RefCell::default(),
        depth: Cell::new(0),
        sent: RefCell::default(),
        violation: RefCell::default(),
    });
    while !shared.is_over() {
        match shared.choose(4) {
            0 => produce(&shared),
            choice => {
                let number = choice % PROCESSES;
                revive(&shared, number);
                shared.turn(number);
            }
        }
    }
    let result = rest(&shared);
    // The cycles hold the shared state that holds them.
    shared.processes.borrow_mut().clear();
    result
}

/// One process is left; it accounts for everything.
fn rest(shared: &Rc<Shared>) -> Result<(), String> {
    shared.rebalance(&[0]);
    for txn in shared.with_state(State::Open) {
        shared.broker.borrow_mut().expire(txn);
    }
    let mark_everything = || {
        let txns = shared.broker.borrow().txns.len();
        (0..txns).for_each(|txn| shared.broker.borrow_mut().mark_all(txn));
    };
    mark_everything();
    for _ in 0..200 {
        revive(shared, 0);
        shared.turn(0);
        mark_everything();
        let broker = shared.broker.borrow();
        let done = |(tp, log): (&TopicPartition, &Vec<Record>)| {
            broker.committed.get(tp).copied().unwrap_or(0) as usize == log.len()
        };
        if broker.sources.iter().all(done) {
            break;
        }
    }
    match shared.violation.borrow_mut().take() {
        None => check(shared),
        Some(violation) => Err(violation),
    }
}
