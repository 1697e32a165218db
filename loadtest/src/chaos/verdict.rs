//! The exact checker. What the pipeline makes of its source topic is a function of it: record by record, in the order of offsets, a
//! packet is accepted when its id is new, passed over when it was accepted with the same content, and a dead letter when it was accepted
//! with another. Everything else that is found is a violation.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::Result;
use coderelay_schemas::dlq::{self, DlqReason};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;
use serde::Serialize;

use super::evidence::{Evidence, Key, Row};
use super::history::{Event, What};
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

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What was acknowledged is in the topic, where the answer said, as it was sent; nothing else is.
    Acknowledged,
    /// Every accepted record is in the duplicate-free topic once, byte for byte, in order; nothing else is.
    Published,
    /// Every accepted packet has one row, with its content and its record's timestamp as write time; nothing else has.
    Stored,
    /// Every refused record is a dead letter once, as it was, with the reason.
    DeadLettered,
    /// The ledger has an entry for every accepted packet, in order; no other.
    Remembered,
    /// A reader of committed records never sees one that is not there in the end, and sees all.
    Witnessed,
    /// The pipeline comes to rest once everything is whole again.
    Liveness,
}

/// What is to become of the source topic's records.
struct Expected<'a> {
    /// By partition, in order.
    accepted: Vec<Vec<(&'a Record, CodePacket)>>,
    refused: Vec<(&'a Record, DlqReason)>,
}

impl<'a> Expected<'a> {
    fn of(source: &'a [Vec<Record>]) -> Self {
        let mut expected = Self { accepted: Vec::new(), refused: Vec::new() };
        for records in source {
            let mut contents: HashMap<Key, bytes::Bytes> = HashMap::new();
            let mut accepted = Vec::new();
            for record in records {
                let packet = match decode(record) {
                    Ok(packet) => packet,
                    Err(reason) => {
                        expected.refused.push((record, reason));
                        continue;
                    }
                };
                match contents.get(&key(&packet)) {
                    Some(content) if *content == packet.content => {}
                    Some(_) => expected.refused.push((record, DlqReason::IdConflict)),
                    None => {
                        contents.insert(key(&packet), packet.content.clone());
                        accepted.push((record, packet));
                    }
                }
            }
            expected.accepted.push(accepted);
        }
        expected
    }
}

/// Of the mistakes that the plan's junk makes.
fn decode(record: &Record) -> Result<CodePacket, DlqReason> {
    let value = record.value.as_deref().ok_or(DlqReason::InvalidPacket)?;
    let packet = CodePacket::decode(value).map_err(|_| DlqReason::DecodeError)?;
    if record.key.as_deref() == Some(packet.repo_id.as_bytes()) { Ok(packet) } else { Err(DlqReason::InvalidPacket) }
}

fn key(packet: &CodePacket) -> Key {
    (packet.repo_id.clone(), packet.packet_id.to_vec())
}

/// Judges what is left of a world against what its producers did. The violations, none twice.
///
/// # Errors
/// None that memory does not make.
pub fn judge(packets: &Packets, events: &[Event], evidence: &Evidence) -> Result<Vec<Violation>> {
    let mut judge = Judge { packets, violations: Vec::new() };
    let expected = Expected::of(&evidence.source);
    judge.acknowledged(events, &evidence.source)?;
    judge.published(&expected, &evidence.deduped);
    judge.stored(&expected, &evidence.rows);
    judge.dead_lettered(&expected, evidence);
    judge.remembered(&expected, evidence)?;
    judge.witnessed(&evidence.deduped, &evidence.witnessed);
    let mut violations = judge.violations;
    violations.sort();
    violations.dedup();
    Ok(violations)
}

struct Judge<'a> {
    packets: &'a Packets,
    violations: Vec<Violation>,
}

impl Judge<'_> {
    fn add(&mut self, kind: Kind, packet: Option<u32>, what: impl Into<String>) {
        self.violations.push(Violation { kind, packet, what: what.into() });
    }

    fn number(&self, record: &Record) -> Option<u32> {
        let packet = CodePacket::decode(record.value.as_deref()?).ok()?;
        self.packets.number(&packet.packet_id)
    }

    fn acknowledged(&mut self, events: &[Event], source: &[Vec<Record>]) -> Result<()> {
        let mut places: HashMap<(i32, i64), Option<Version>> = HashMap::new();
        for record in source.iter().flatten() {
            let Ok(packet) = decode(record) else { continue };
            let version = self.packets.identify(&packet)?;
            if version.is_none() {
                self.add(Kind::Acknowledged, self.number(record), format!("nobody sent what is at {}", place(record)));
            }
            places.insert((record.partition, record.offset), version);
        }
        let mut answered: HashMap<(i32, i64), u64> = HashMap::new();
        for event in events {
            let What::Committed { version, partition, offset } = &event.what else { continue };
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

    /// Order and bytes at once: the two sequences have to be the same.
    fn published(&mut self, expected: &Expected<'_>, deduped: &[Vec<Record>]) {
        for (accepted, found) in expected.accepted.iter().zip(deduped) {
            let mut counts: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
            let bytes = |record: &Record| record.value.clone().unwrap_or_default();
            for (record, _) in accepted {
                *counts.entry(bytes(record)).or_default() -= 1;
            }
            for record in found {
                *counts.entry(bytes(record)).or_default() += 1;
            }
            for record in accepted.iter().map(|(record, _)| *record).chain(found) {
                match counts.remove(&bytes(record)) {
                    None | Some(0) => {}
                    Some(-1) => self.add(Kind::Published, self.number(record), format!("{} is missing", place(record))),
                    Some(more) => {
                        self.add(
                            Kind::Published,
                            self.number(record),
                            format!("{more} too many, as at {}", place(record)),
                        );
                    }
                }
            }
            for ((record, _), copy) in accepted.iter().zip(found) {
                if (record.value != copy.value) && accepted.len() == found.len() {
                    self.add(Kind::Published, self.number(record), format!("out of order at {}", place(copy)));
                    break;
                }
                let rest = |record: &Record| (record.key.clone(), record.headers.clone(), record.timestamp);
                if record.value == copy.value && rest(record) != rest(copy) {
                    let what =
                        format!("key, headers or timestamp at {} are not those of {}", place(copy), place(record));
                    self.add(Kind::Published, self.number(record), what);
                }
            }
        }
    }

    fn stored(&mut self, expected: &Expected<'_>, rows: &[(Key, Row)]) {
        let mut wanted: BTreeMap<Key, Row> = BTreeMap::new();
        for (record, packet) in expected.accepted.iter().flatten() {
            let created_at = packet.created_at.unwrap_or_default();
            let row = Row {
                content: packet.content.to_vec(),
                metadata: packet.metadata.clone().into_iter().collect(),
                created_at: created_at.seconds * 1000 + i64::from(created_at.nanos) / 1_000_000,
                written: record.timestamp.unwrap_or_default() * 1000,
            };
            wanted.insert(key(packet), row);
        }
        for (key, row) in rows {
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

    fn dead_lettered(&mut self, expected: &Expected<'_>, evidence: &Evidence) {
        let mut letters: BTreeMap<(String, String), Vec<&Record>> = BTreeMap::new();
        for letter in evidence.letters.iter().flatten() {
            let header = |name| letter.header(name).unwrap_or_default().to_owned();
            if header(dlq::DLQ_TOPIC) != evidence.topic {
                self.add(
                    Kind::DeadLettered,
                    self.number(letter),
                    format!("a letter of no record at {}", place(letter)),
                );
            }
            letters.entry((header(dlq::DLQ_PARTITION), header(dlq::DLQ_OFFSET))).or_default().push(letter);
        }
        for (record, reason) in &expected.refused {
            let found = letters.remove(&(record.partition.to_string(), record.offset.to_string())).unwrap_or_default();
            let number = self.number(record);
            match found.as_slice() {
                [] => self.add(Kind::DeadLettered, number, format!("no letter of {} ({reason})", place(record))),
                [letter] => {
                    let same = letter.value == record.value
                        && letter.key == record.key
                        && letter.partition == record.partition
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
            let what = format!("a letter at {} of a record that is in order", place(letter));
            self.add(Kind::DeadLettered, self.number(letter), what);
        }
    }

    fn remembered(&mut self, expected: &Expected<'_>, evidence: &Evidence) -> Result<()> {
        for (partition, (accepted, ledger)) in expected.accepted.iter().zip(&evidence.ledger).enumerate() {
            let wanted = accepted.iter().map(|(_, packet)| {
                let id = PacketId::from_slice(&packet.packet_id)?;
                Ok((Some(evidence.topic.clone()), Entry::new(&packet.repo_id, &id, &packet.content)))
            });
            let wanted: Vec<_> = wanted.collect::<Result<_>>()?;
            if wanted == *ledger {
                continue;
            }
            let at = wanted.iter().zip(ledger).position(|(wanted, found)| wanted != found);
            let at = at.unwrap_or(wanted.len().min(ledger.len()));
            let packet = accepted.get(at).and_then(|(_, packet)| self.packets.number(&packet.packet_id));
            let what = format!(
                "partition {partition} of the ledger has {} entries, {} were accepted; they differ from entry {at} on",
                ledger.len(),
                wanted.len()
            );
            self.add(Kind::Remembered, packet, what);
        }
        Ok(())
    }

    fn witnessed(&mut self, deduped: &[Vec<Record>], witnessed: &[Record]) {
        let place = |record: &Record| (record.partition, record.offset);
        let known: HashMap<_, _> = deduped.iter().flatten().map(|record| (place(record), record)).collect();
        let seen: HashMap<_, _> = witnessed.iter().map(|record| (place(record), record)).collect();
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
