//! What is to become of the records of a region's source topics. It is a function of them: in the order of each topic, a packet is
//! accepted when its id is new, passed over when it was accepted with the same content, and a dead letter when it was accepted with
//! another. Two things decide besides. Between several topics there is no order: whichever first copy was published counts as the one that
//! came first. And where old records expire while many wait, those that have a letter which says so have expired, as if they were no
//! packets. Everything else follows from that.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use coderelay_schemas::dlq::{self, DlqReason};
use coderelay_schemas::headers;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;

use super::evidence::{Evidence, Key, Row, Source};
use super::topic::Record;

/// By partition.
#[derive(Debug)]
pub struct Expected<'a>(pub Vec<Partition<'a>>);

/// Of one partition of all source topics.
#[derive(Debug, Default)]
pub struct Partition<'a> {
    /// By source topic: the first copy it brings of every id, in order. Each is written and remembered.
    pub firsts: Vec<Vec<First<'a>>>,
    /// Dead letters, each with its topic.
    pub refused: Vec<(&'a str, &'a Record, DlqReason)>,
}

/// The first copy of an id in one topic.
#[derive(Debug)]
pub struct First<'a> {
    /// It.
    pub record: &'a Record,
    /// Decoded.
    pub packet: CodePacket,
    /// Whether it is the one that is published.
    pub accepted: bool,
    /// The content that is published under its id.
    pub content: Bytes,
}

impl<'a> Expected<'a> {
    /// Of everything in `evidence`.
    pub fn of(evidence: &'a Evidence) -> Self {
        let expired = expired(evidence);
        let partitions = evidence.deduped.iter().enumerate();
        let partitions =
            partitions.map(|(partition, published)| Partition::of(partition, &evidence.sources, published, &expired));
        Self(partitions.collect())
    }

    /// The rows of the store.
    pub fn rows(&self) -> BTreeMap<Key, Row> {
        let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
        for First { record, packet, .. } in self.0.iter().flat_map(|partition| partition.firsts.iter().flatten()) {
            let row = row(record, packet);
            let merged = match rows.remove(&key(packet)) {
                Some(known) => merge(known, row),
                None => row,
            };
            rows.insert(key(packet), merged);
        }
        rows
    }
}

impl<'a> Partition<'a> {
    fn of(partition: usize, sources: &'a [Source], published: &[Record], expired: &HashSet<[String; 3]>) -> Self {
        let mut refused = Vec::new();
        let decoded = sources.iter().map(|Source { topic, records }| {
            let packets = records.get(partition).into_iter().flatten().filter_map(|record| {
                let expired = expired.contains(&place(topic, record));
                match if expired { Err(DlqReason::Expired) } else { decode(record) } {
                    Ok(packet) => Some((record, packet)),
                    Err(reason) => {
                        refused.push((topic.as_str(), record, reason));
                        None
                    }
                }
            });
            (topic.as_str(), packets.collect::<Vec<_>>())
        });
        let decoded: Vec<_> = decoded.collect();
        let accepted = accepted(&decoded, published);
        let firsts = decoded.iter().enumerate().map(|(number, (topic, packets))| {
            let mut seen = HashSet::new();
            let mut firsts = Vec::new();
            for (record, packet) in packets {
                let (by, content) = &accepted[&key(packet)];
                if packet.content != *content {
                    refused.push((*topic, *record, DlqReason::IdConflict));
                }
                if seen.insert(key(packet)) {
                    let (packet, content) = (packet.clone(), content.clone());
                    firsts.push(First { record, packet, accepted: *by == number, content });
                }
            }
            firsts
        });
        let firsts = firsts.collect();
        Self { firsts, refused }
    }

    /// What is to be published: of each topic in order, between them in any.
    pub fn accepted(&self) -> impl Iterator<Item = &First<'a>> {
        self.firsts.iter().flatten().filter(|first| first.accepted)
    }
}

/// Where the records were that have expired, as their letters tell.
pub(super) fn expired(evidence: &Evidence) -> HashSet<[String; 3]> {
    let letters = evidence.letters.iter().flatten().filter(|_| evidence.expires);
    letters.filter(|letter| letter.header(dlq::DLQ_REASON) == Some(DlqReason::Expired.as_str())).map(origin).collect()
}

/// Where a dead letter's record was: topic, partition and offset.
pub(super) fn origin(letter: &Record) -> [String; 3] {
    [dlq::DLQ_TOPIC, dlq::DLQ_PARTITION, dlq::DLQ_OFFSET].map(|name| letter.header(name).unwrap_or_default().to_owned())
}

/// Where a record of `topic` is, likewise.
pub(super) fn place(topic: &str, record: &Record) -> [String; 3] {
    [topic.to_owned(), record.partition.to_string(), record.offset.to_string()]
}

/// Of every id, the number of the topic whose first copy is published, and the content of that.
fn accepted(topics: &[(&str, Vec<(&Record, CodePacket)>)], published: &[Record]) -> HashMap<Key, (usize, Bytes)> {
    let mut found: HashMap<Key, &Record> = HashMap::new();
    for record in published {
        if let Ok(packet) = decode(record) {
            found.entry(key(&packet)).or_insert(record);
        }
    }
    let mut accepted: HashMap<Key, (usize, Bytes)> = HashMap::new();
    for (number, (_, packets)) in topics.iter().enumerate() {
        let mut seen = HashSet::new();
        for (record, packet) in packets.iter().filter(|(_, packet)| seen.insert(key(packet))) {
            let is_published = found.get(&key(packet)).is_some_and(|copy| copy.content() == record.content());
            // An id of which none is published counts as that of the first topic: something is missing then, whichever it is.
            if is_published || !accepted.contains_key(&key(packet)) {
                accepted.insert(key(packet), (number, packet.content.clone()));
            }
        }
    }
    accepted
}

/// Of the mistakes that the plan's junk makes.
pub(super) fn decode(record: &Record) -> Result<CodePacket, DlqReason> {
    let value = record.value.as_deref().ok_or(DlqReason::InvalidPacket)?;
    let packet = CodePacket::decode(value).map_err(|_| DlqReason::DecodeError)?;
    if record.key.as_deref() == Some(packet.repo_id.as_bytes()) { Ok(packet) } else { Err(DlqReason::InvalidPacket) }
}

pub(super) fn key(packet: &CodePacket) -> Key {
    (packet.repo_id.clone(), packet.packet_id.to_vec())
}

fn row(record: &Record, packet: &CodePacket) -> Row {
    let created_at = packet.created_at.unwrap_or_default();
    Row {
        day: (created_at.seconds.div_euclid(86_400) + (1 << 31)) as u32,
        content: packet.content.to_vec(),
        metadata: packet.metadata.clone().into_iter().collect(),
        created_at: created_at.seconds * 1000 + i64::from(created_at.nanos) / 1_000_000,
        ingested_at: record.timestamp.unwrap_or_default(),
        region: record.header(headers::REGION).map(str::to_owned),
        written: record.timestamp.unwrap_or_default() * 1000,
    }
}

/// What CQL makes of two writes of one row: in every column the later, and of two at one time the larger. The columns that the plan's
/// packets can differ in at one time are the content and the region.
fn merge(one: Row, other: Row) -> Row {
    let at_once = (one.written == other.written).then(|| one.region.clone().max(other.region.clone()));
    let later = if (one.written, &one.content) < (other.written, &other.content) { other } else { one };
    Row { region: at_once.unwrap_or_else(|| later.region.clone()), ..later }
}
