//! The exact audit: every packet that was acknowledged is in the deduped topic once and in CQL once, byte for byte, in the
//! order in which its stream sent it; nothing else is there.
//!
//! A packet is a function of its number ([`Corpus`]), so whoever finds one knows what it must look like. What is kept of
//! each are flags, counts and positions: 24 bytes, and 4 more while the order is checked.

mod findings;
mod slot;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use coderelay_schemas::pb::Committed;

use crate::corpus::{Corpus, Found};
use crate::summary;
use findings::{Findings, Kind, Note};
pub use slot::Place;
use slot::{ACKNOWLEDGED, ALTERED, COPIES, RESENT, ROWS, SENT, Slot, TOPICS};

/// Bytes for each packet while the order is checked: its number in a list.
const ORDER_BYTES: usize = size_of::<u32>();

/// Follows the packets `0..packets` of a corpus. Shared by the threads that send, read and scan.
///
/// Everything of the corpus that turns up counts, whoever sent it: give each run on a deployment that lives on a seed of its
/// own.
#[derive(Debug)]
pub struct Audit {
    corpus: Arc<Corpus>,
    slots: Box<[Slot]>,
    sent: AtomicU32,
    /// Names of the topics that acknowledgements speak of; all beyond the last share its place.
    topics: [OnceLock<String>; TOPICS],
    strangers: AtomicU64,
    findings: Mutex<Findings>,
    exclusive: bool,
    table: bool,
}

impl Audit {
    /// An audit of the corpus' first packets.
    ///
    /// # Panics
    /// If there are more than 2³², from where on contents repeat.
    pub fn new(corpus: Arc<Corpus>, packets: u64) -> Self {
        assert!(u32::try_from(packets).is_ok(), "an audit follows fewer than 2³² packets, not {packets}");
        Self {
            corpus,
            slots: (0..packets).map(|_| Slot::default()).collect(),
            sent: AtomicU32::new(0),
            topics: Default::default(),
            strangers: AtomicU64::new(0),
            findings: Mutex::default(),
            exclusive: false,
            table: true,
        }
    }

    /// Also counts records and rows of other corpora and producers as unsent: right where the topic and the table are the
    /// run's own. Each record and each row counts.
    #[must_use]
    pub fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }

    /// Looks for packets in a topic only: one that no processor stores from.
    #[must_use]
    pub fn without_table(self) -> Self {
        Self { table: false, ..self }
    }

    /// The corpus.
    pub fn corpus(&self) -> &Arc<Corpus> {
        &self.corpus
    }

    /// Says that packet `n` is about to be sent on `stream`. The order of these calls for one stream is the order that its
    /// packets have to arrive in, repository by repository; a new connection is a new stream. A second call for `n` marks
    /// it as resent: no order is promised for it.
    ///
    /// # Panics
    /// If the audit has no such packet.
    pub fn sent(&self, n: u64, stream: u16) {
        let slot = &self.slots[n as usize];
        if slot.set(SENT).is(SENT) {
            slot.set(RESENT);
        } else {
            slot.set_stream(stream);
            slot.sequence.store(self.sent.fetch_add(1, Relaxed), Relaxed);
        }
    }

    /// Says that packet `n` was acknowledged; again for each time it was.
    ///
    /// # Panics
    /// If the audit has no such packet.
    pub fn acknowledged(&self, n: u64, committed: &Committed) {
        let slot = &self.slots[n as usize];
        if !slot.set(ACKNOWLEDGED).is(ACKNOWLEDGED) {
            let place = Place { partition: committed.partition, offset: committed.offset };
            slot.acknowledged.store(place.pack(self.topic(&committed.topic)), Relaxed);
        }
    }

    /// Whether packet `n` was acknowledged.
    ///
    /// # Panics
    /// If the audit has no such packet.
    pub fn is_acknowledged(&self, n: u64) -> bool {
        self.slots[n as usize].state().is(ACKNOWLEDGED)
    }

    /// Whether a record of packet `n` was seen in the topic.
    ///
    /// # Panics
    /// If the audit has no such packet.
    pub fn is_published(&self, n: u64) -> bool {
        self.slots[n as usize].state().counted(COPIES) > 0
    }

    /// Packets that were acknowledged and not seen in the topic so far.
    pub fn unpublished(&self) -> u64 {
        let states = self.slots.iter().map(Slot::state);
        states.filter(|state| state.is(ACKNOWLEDGED) && state.counted(COPIES) == 0).count() as u64
    }

    /// Enters a record of the topic. The packet's number, if it is the first record of a packet that was sent.
    pub fn published(&self, key: Option<&[u8]>, found: &Found<'_>, at: Place) -> Option<u64> {
        let n = self.number(found.packet_id, || format!("seen in the topic at {at}"))?;
        let difference = self.corpus.difference(n as u64, found);
        let unkeyed = key != Some(found.repo_id.as_bytes());
        self.copy(n, at, difference.or_else(|| unkeyed.then(|| "the record's key is not its repo_id".to_owned())))
    }

    /// Enters a record of the topic that says in its headers whose it is, and is not what was sent under that id.
    pub fn damaged(&self, packet_id: &[u8], difference: String, at: Place) -> Option<u64> {
        let n = self.number(packet_id, || format!("seen in the topic at {at}: {difference}"))?;
        self.copy(n, at, Some(difference))
    }

    /// Enters a row of the table.
    pub fn stored(&self, found: &Found<'_>) {
        let Some(n) = self.number(found.packet_id, || format!("a row of {:?}", found.repo_id)) else { return };
        if let Some(difference) = self.corpus.difference(n as u64, found) {
            self.alter(n, || format!("{difference}, in CQL"));
        }
        if self.slots[n].count(ROWS).counted(ROWS) == 1 {
            self.note(Kind::Duplicated, n, || format!("another row, of {:?}", found.repo_id));
        }
    }

    /// What became of the packets. Call it after everything that was sent had its answer and topic and table were read to
    /// their ends.
    pub fn finish(&self) -> summary::Audit {
        let mut audit = summary::Audit { unsent: self.strangers.load(Relaxed), ..summary::Audit::default() };
        let mut findings = self.findings().clone();
        for (n, slot) in self.slots.iter().enumerate() {
            let state = slot.state();
            let missing = state.counted(COPIES) == 0 || (self.table && state.counted(ROWS) == 0);
            if state.is(ACKNOWLEDGED) && missing {
                audit.lost += 1;
                findings.add(Kind::Lost, || self.note_of(n, String::new()));
            }
            if !state.is(SENT) && state.is_found() {
                audit.unsent += 1;
                findings.add(Kind::Unsent, || self.note_of(n, String::new()));
            }
            audit.acknowledged += u64::from(state.is(ACKNOWLEDGED));
            audit.duplicated += u64::from(state.counted(COPIES) > 1 || state.counted(ROWS) > 1);
            audit.altered += u64::from(state.is(ALTERED));
            audit.unacknowledged += u64::from(state.is(SENT) && !state.is(ACKNOWLEDGED) && state.is_found());
        }
        self.check_order(|n, overtaker| {
            audit.reordered += 1;
            findings.add(Kind::Reordered, || {
                let (place, _) = Place::unpack(self.slots[overtaker].seen.load(Relaxed));
                let other = hex::encode(self.corpus.packet_id(overtaker as u64));
                self.note_of(n, format!("sent before {other}, which is ahead of it at {place}"))
            });
        });
        audit.bytes_per_packet = (size_of::<Slot>() + ORDER_BYTES) as u64;
        audit.findings = findings.report(|n| self.whereabouts(n));
        audit
    }

    /// Calls `behind` with every packet that stands behind a later one of its stream and repository, and with that one.
    fn check_order(&self, mut behind: impl FnMut(usize, usize)) {
        let mut order: Vec<u32> = Vec::with_capacity(self.slots.len());
        order.extend((0..self.slots.len() as u32).filter(|n| {
            let state = self.slots[*n as usize].state();
            state.is(SENT) && !state.is(RESENT) && state.counted(COPIES) > 0
        }));
        let slot = |n: u32| &self.slots[n as usize];
        let lane = |n: u32| (slot(n).state().stream(), self.corpus.repository(n.into()));
        order.sort_unstable_by_key(|n| (lane(*n), slot(*n).sequence.load(Relaxed)));
        for packets in order.chunk_by(|a, b| lane(*a) == lane(*b)) {
            // Of those sent later, the one that stands first in the topic.
            let mut first: Option<(u64, u32)> = None;
            for n in packets.iter().rev() {
                let seen = slot(*n).seen.load(Relaxed);
                match first {
                    Some((ahead, overtaker)) if ahead < seen => behind(*n as usize, overtaker as usize),
                    _ => first = Some((seen, *n)),
                }
            }
        }
    }

    /// The packet's number if it is one of the run's; counts it as unsent otherwise, if it should not be there.
    fn number(&self, packet_id: &[u8], what: impl FnOnce() -> String) -> Option<usize> {
        let number = self.corpus.number(packet_id);
        if let Some(n) = number.filter(|n| *n < self.slots.len() as u64) {
            return Some(n as usize);
        }
        if number.is_some() || self.exclusive {
            self.strangers.fetch_add(1, Relaxed);
            let note = || Note { packet_id: packet_id.to_owned(), n: None, what: what() };
            self.findings().add(Kind::Unsent, note);
        }
        None
    }

    fn copy(&self, n: usize, at: Place, difference: Option<String>) -> Option<u64> {
        let slot = &self.slots[n];
        if let Some(difference) = difference {
            self.alter(n, || format!("{difference}, in the topic at {at}"));
        }
        let before = slot.count(COPIES);
        match before.counted(COPIES) {
            0 => slot.seen.store(at.pack(0), Relaxed),
            1 => self.note(Kind::Duplicated, n, || format!("again in the topic at {at}")),
            _ => {}
        }
        (before.counted(COPIES) == 0 && before.is(SENT)).then_some(n as u64)
    }

    fn alter(&self, n: usize, what: impl FnOnce() -> String) {
        if !self.slots[n].set(ALTERED).is(ALTERED) {
            self.note(Kind::Altered, n, what);
        }
    }

    fn note(&self, kind: Kind, n: usize, what: impl FnOnce() -> String) {
        self.findings().add(kind, || self.note_of(n, what()));
    }

    fn note_of(&self, n: usize, what: String) -> Note {
        Note { packet_id: self.corpus.packet_id(n as u64).to_vec(), n: Some(n), what }
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a packet was last seen.
    fn whereabouts(&self, n: usize) -> String {
        let (slot, state) = (&self.slots[n], self.slots[n].state());
        let (acknowledged, topic) = Place::unpack(slot.acknowledged.load(Relaxed));
        let name = self.topics[topic].get().map_or("", String::as_str);
        let answer = match (state.is(ACKNOWLEDGED), state.is(SENT)) {
            (true, _) => format!("acknowledged at {name}-{acknowledged}"),
            (false, true) => "sent, not acknowledged".to_owned(),
            (false, false) => "never sent".to_owned(),
        };
        let (seen, _) = Place::unpack(slot.seen.load(Relaxed));
        let topic = if state.counted(COPIES) > 0 { format!("seen at {seen}") } else { "not seen in the topic".into() };
        let rows = match state.counted(ROWS) {
            _ if !self.table => return format!("{answer}; {topic}"),
            0 => "no row",
            1 => "a row",
            _ => "several rows",
        };
        format!("{answer}; {topic}; {rows}")
    }

    fn topic(&self, name: &str) -> usize {
        let known = |topic: &OnceLock<String>| topic.get_or_init(|| name.to_owned()) == name;
        self.topics.iter().position(known).unwrap_or(TOPICS - 1)
    }
}
