//! The exact checker: whatever is found is to be what [was expected](super::expected), and was acknowledged, mirrored and read as promised.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use anyhow::Result;
use coderelay_schemas::dlq::{self, DlqReason};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::partition::partition_for;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;
use serde::Serialize;

use super::evidence::{Evidence, Source};
use super::expected::{self, Expected, First, decode, key, origin};
use super::history::{Event, What};
use super::mirrored;
use super::packets::Packets;
use super::plan::Version;
use super::topic::Record;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// The packet it was broken to, if it was one of the producers'.
    pub packet: Option<u32>,
    /// How.
    pub what: String,
}

impl Violation {
    /// Whether something is lost, doubled or not as it should be. That the pipeline did not come to rest may be the machine's doing.
    pub fn is_breach(&self) -> bool {
        self.kind != Kind::Liveness
    }
}

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What was acknowledged is in the topic, where the answer said, as it was sent; nothing else is.
    Acknowledged,
    /// A region's topic is in the others, every record at least once, as it was and, unless a task of the mirror failed, in order; nothing
    /// else is.
    Mirrored,
    /// Every accepted record is in the duplicate-free topic once, byte for byte, in order; nothing else is.
    Published,
    /// Every accepted packet has one row, with its content and its record's timestamp as write time; nothing else has. In several regions
    /// it is the same row.
    Stored,
    /// Every refused record is a dead letter once, as it was, with the reason. What expired is accepted in the end, having been replayed.
    DeadLettered,
    /// The ledger has an entry for every accepted packet, in order, from the transaction that published it; no other.
    Remembered,
    /// A reader of committed records never sees one that is not there in the end, and sees all.
    Witnessed,
    /// The pipeline comes to rest once everything is whole again.
    Liveness,
}

/// Judges what is left of each region of a world against what its producers did. The violations, none twice.
///
/// # Errors
/// None that memory does not make.
pub fn judge(packets: &Packets, events: &[Event], regions: &[Evidence]) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for (number, evidence) in regions.iter().enumerate() {
        let mut judge = Judge { packets, evidence, violations: Vec::new() };
        let expected = Expected::of(evidence);
        judge.acknowledged(number, events)?;
        let others = regions.iter().filter(|other| other.region != evidence.region);
        others.zip(&evidence.sources[1..]).for_each(|(other, copies)| judge.mirrored(other.own(), copies));
        judge.published(&expected);
        judge.stored(&expected);
        judge.dead_lettered(&expected);
        judge.remembered(&expected)?;
        judge.at_once()?;
        judge.witnessed();
        violations.extend(judge.violations);
    }
    violations.sort();
    violations.dedup();
    Ok(violations)
}

struct Judge<'a> {
    packets: &'a Packets,
    evidence: &'a Evidence,
    violations: Vec<Violation>,
}

impl Judge<'_> {
    fn add(&mut self, kind: Kind, packet: Option<u32>, what: impl Into<String>) {
        let what = match &self.evidence.region {
            Some(region) => format!("{region}: {}", what.into()),
            None => what.into(),
        };
        self.violations.push(Violation { kind, packet, what });
    }

    fn number(&self, record: &Record) -> Option<u32> {
        let packet = CodePacket::decode(record.value.as_deref()?).ok()?;
        self.packets.number(&packet.packet_id)
    }

    fn acknowledged(&mut self, number: usize, events: &[Event]) -> Result<()> {
        let mut places: HashMap<(i32, i64), Option<Version>> = HashMap::new();
        for record in self.evidence.own().records.iter().flatten() {
            let Ok(packet) = decode(record) else { continue };
            let partition = partition_for(packet.repo_id.as_bytes(), self.evidence.own().records.len() as i32);
            if partition != record.partition {
                let what = format!("{} belongs into partition {partition}: its copies would not meet", place(record));
                self.add(Kind::Acknowledged, self.number(record), what);
            }
            let version = self.packets.identify(&packet)?;
            if version.is_none() {
                self.add(Kind::Acknowledged, self.number(record), format!("nobody sent what is at {}", place(record)));
            }
            places.insert((record.partition, record.offset), version);
        }
        let mut answered: HashMap<(i32, i64), u64> = HashMap::new();
        for event in events {
            let What::Committed { version, region, partition, offset } = &event.what else { continue };
            if *region != number {
                continue;
            }
            let found = places.get(&(*partition, *offset)).copied().flatten();
            if found != Some(*version) {
                let found = found.map_or("nothing of the kind".to_owned(), |found| found.to_string());
                let what = format!("acknowledged at {partition}@{offset}, where there is {found}");
                self.add(Kind::Acknowledged, Some(version.packet), what);
            }
            *answered.entry((*partition, *offset)).or_default() += 1;
        }
        for ((partition, offset), times) in answered {
            if times > 1 {
                self.add(Kind::Acknowledged, None, format!("{partition}@{offset} answers {times} packets"));
            }
        }
        Ok(())
    }

    fn mirrored(&mut self, source: &Source, copies: &Source) {
        for (partition, sent, arrived) in
            mirrored::differences(&source.records, &copies.records, self.evidence.mirrored_in_order)
        {
            let what = format!("{}/{partition} has {arrived} records of {sent}, or others", copies.topic);
            self.add(Kind::Mirrored, None, what);
        }
    }

    /// Order and bytes at once: of each source topic the two sequences have to be the same.
    fn published(&mut self, expected: &Expected<'_>) {
        for (partition, found) in expected.0.iter().zip(&self.evidence.deduped) {
            let accepted: Vec<_> = partition.accepted().map(|first| first.record).collect();
            self.published_once(&accepted, found);
            for firsts in &partition.firsts {
                let accepted: Vec<_> = firsts.iter().filter(|first| first.accepted).map(|first| first.record).collect();
                let values: HashSet<_> = accepted.iter().map(|record| &record.value).collect();
                let found: Vec<_> = found.iter().filter(|record| values.contains(&record.value)).collect();
                self.published_in_order(&accepted, &found);
            }
        }
    }

    fn published_once(&mut self, accepted: &[&Record], found: &[Record]) {
        let mut counts: BTreeMap<_, i64> = BTreeMap::new();
        for record in accepted {
            *counts.entry(&record.value).or_default() -= 1;
        }
        for record in found {
            *counts.entry(&record.value).or_default() += 1;
        }
        for record in accepted.iter().copied().chain(found) {
            match counts.remove(&record.value) {
                None | Some(0) => {}
                Some(-1) => self.add(Kind::Published, self.number(record), format!("{} is missing", place(record))),
                Some(more) => {
                    let what = format!("{more} too many, as at {}", place(record));
                    self.add(Kind::Published, self.number(record), what);
                }
            }
        }
    }

    fn published_in_order(&mut self, accepted: &[&Record], found: &[&Record]) {
        for (record, copy) in accepted.iter().zip(found) {
            if record.value != copy.value && accepted.len() == found.len() {
                self.add(Kind::Published, self.number(record), format!("out of order at {}", place(copy)));
                break;
            }
            if record.value == copy.value && record.content() != copy.content() {
                let what = format!("key, headers or timestamp at {} are not those of {}", place(copy), place(record));
                self.add(Kind::Published, self.number(record), what);
            }
        }
    }

    fn stored(&mut self, expected: &Expected<'_>) {
        let mut wanted = expected.rows();
        for (key, row) in &self.evidence.rows {
            let number = self.packets.number(&key.1);
            match wanted.remove(key) {
                None => self.add(Kind::Stored, number, "a row that should not be there, or a second one"),
                Some(wanted) if wanted == *row => {}
                Some(wanted) if wanted.written != row.written => {
                    let what = format!("written at {} µs, its record has {} µs", row.written, wanted.written);
                    self.add(Kind::Stored, number, what);
                }
                Some(_) => self.add(Kind::Stored, number, "another row than what was sent"),
            }
        }
        for (_, packet_id) in wanted.into_keys() {
            self.add(Kind::Stored, self.packets.number(&packet_id), "accepted, and no row");
        }
    }

    fn dead_lettered(&mut self, expected: &Expected<'_>) {
        let mut letters: BTreeMap<[String; 3], Vec<&Record>> = BTreeMap::new();
        for letter in self.evidence.letters.iter().flatten() {
            letters.entry(origin(letter)).or_default().push(letter);
        }
        let accepted = expected.0.iter().flat_map(expected::Partition::accepted);
        let accepted: HashSet<_> = accepted.map(|first| key(&first.packet)).collect();
        for (topic, record, reason) in expected.0.iter().flat_map(|partition| &partition.refused) {
            let found = letters.remove(&expected::place(topic, record)).unwrap_or_default();
            let number = self.number(record);
            if *reason == DlqReason::Expired && decode(record).is_ok_and(|packet| !accepted.contains(&key(&packet))) {
                self.add(Kind::DeadLettered, number, format!("{} expired, and never came back", place(record)));
            }
            match found.as_slice() {
                [] => self.add(Kind::DeadLettered, number, format!("no letter of {} ({reason})", place(record))),
                [letter] => {
                    let same = letter.value == record.value
                        && letter.key == record.key
                        && letter.partition == record.partition
                        && letter.timestamp == record.timestamp
                        && letter.headers.starts_with(&record.headers);
                    if !same || letter.header(dlq::DLQ_REASON) != Some(reason.as_str()) {
                        let what =
                            format!("the letter at {} is not that of {} ({reason})", place(letter), place(record));
                        self.add(Kind::DeadLettered, number, what);
                    }
                }
                several => {
                    let what = format!("{} letters of {}", several.len(), place(record));
                    self.add(Kind::DeadLettered, number, what);
                }
            }
        }
        for letter in letters.into_values().flatten() {
            let what = format!("a letter at {} of a record that is in order, or of none", place(letter));
            self.add(Kind::DeadLettered, self.number(letter), what);
        }
    }

    /// Of each source topic the entries have to be those of the first copies it brought, in order.
    fn remembered(&mut self, expected: &Expected<'_>) -> Result<()> {
        for (number, (partition, ledger)) in expected.0.iter().zip(&self.evidence.ledger).enumerate() {
            let mut rest = ledger.len();
            for (source, firsts) in self.evidence.sources.iter().zip(&partition.firsts) {
                let wanted = firsts.iter().map(|First { packet, content, .. }| {
                    let id = PacketId::from_slice(&packet.packet_id)?;
                    Ok(Entry::new(&packet.repo_id, &id, content))
                });
                let wanted: Vec<_> = wanted.collect::<Result<_>>()?;
                let found = ledger.iter().filter(|entry| entry.topic.as_deref() == Some(&source.topic));
                let found: Vec<_> = found.map(|found| found.entry).collect();
                rest -= found.len();
                if wanted == found {
                    continue;
                }
                let at = wanted.iter().zip(&found).position(|(wanted, found)| wanted != found);
                let at = at.unwrap_or(wanted.len().min(found.len()));
                let packet = firsts.get(at).and_then(|first| self.packets.number(&first.packet.packet_id));
                let what = format!(
                    "partition {number} of the ledger has {} entries of {}, which brought {}; they differ from entry {at} on",
                    found.len(),
                    source.topic,
                    wanted.len()
                );
                self.add(Kind::Remembered, packet, what);
            }
            if rest > 0 {
                let what = format!("partition {number} of the ledger has {rest} entries of no source topic");
                self.add(Kind::Remembered, None, what);
            }
        }
        Ok(())
    }

    /// What one transaction publishes it enters in the ledger. Between two transactions a partition has the marker that ended the first, so
    /// records without a gap are of one. Those of one may have gaps: of a fenced worker's records, which were aborted.
    fn at_once(&mut self) -> Result<()> {
        for (published, ledger) in self.evidence.deduped.iter().zip(&self.evidence.ledger) {
            let transactions = ledger.chunk_by(|one, next| next.offset - one.offset <= 1).enumerate();
            let entered = transactions.flat_map(|(number, entries)| entries.iter().map(move |found| (number, found)));
            let entered: HashMap<_, _> =
                entered.map(|(number, found)| ((found.topic.as_deref(), found.entry.key), number)).collect();
            for run in published.chunk_by(|one, next| next.offset == one.offset + 1) {
                let mut transactions = HashSet::new();
                for record in run {
                    let Ok(packet) = decode(record) else { continue };
                    let id = PacketId::from_slice(&packet.packet_id)?;
                    let key = Entry::new(&packet.repo_id, &id, &packet.content).key;
                    // Of an id that several topics brought, the first entry is that of its acceptance.
                    let of = |source: &Source| entered.get(&(Some(source.topic.as_str()), key)).copied();
                    transactions.extend(self.evidence.sources.iter().filter_map(of).min());
                }
                if let ([first, ..], true) = (run, transactions.len() > 1) {
                    let what = format!(
                        "what one transaction published from {} on, {} entered in the ledger",
                        place(first),
                        transactions.len()
                    );
                    self.add(Kind::Remembered, self.number(first), what);
                }
            }
        }
        Ok(())
    }

    fn witnessed(&mut self) {
        let place = |record: &Record| (record.partition, record.offset);
        let deduped = self.evidence.deduped.iter().flatten();
        let known: HashMap<_, _> = deduped.map(|record| (place(record), record)).collect();
        let seen: HashMap<_, _> = self.evidence.witnessed.iter().map(|record| (place(record), record)).collect();
        for (at, record) in &seen {
            if known.get(at) != Some(record) {
                let what = format!("a reader saw what is not there in the end, at {}@{}", at.0, at.1);
                self.add(Kind::Witnessed, self.number(record), what);
            }
        }
        for (at, record) in &known {
            if !seen.contains_key(at) {
                self.add(Kind::Witnessed, self.number(record), format!("a reader never saw {}@{}", at.0, at.1));
            }
        }
    }
}

fn place(record: &Record) -> String {
    format!("{}@{}", record.partition, record.offset)
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packet {
            Some(packet) => write!(f, "{}: packet {packet}: {}", self.kind, self.what),
            None => write!(f, "{}: {}", self.kind, self.what),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
