//! The vectors in `vectors/`, which Python and Java wrote, hold for this crate. `tests/python/test_vectors.py` reads the same
//! files.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::partition::{murmur2, partition_for};
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content};
use prost::Message as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    #[derive(Deserialize)]
    struct File<T> {
        vectors: Vec<T>,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let file: File<T> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(!file.vectors.is_empty());
    file.vectors
}

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

#[derive(Deserialize)]
struct IdVector {
    name: String,
    repo_id: String,
    content_hex: String,
    metadata: BTreeMap<String, String>,
    packet_id: PacketIdText,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct PacketIdText(PacketId);

impl TryFrom<String> for PacketIdText {
    type Error = coderelay_schemas::packet_id::InvalidPacketId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[test]
fn derived_ids_are_those_of_python() {
    for vector in read::<IdVector>("ids.json") {
        let id = PacketId::derive(&vector.repo_id, &bytes(&vector.content_hex), &vector.metadata);
        assert_eq!(id, vector.packet_id.0, "{}", vector.name);
    }
}

#[derive(Deserialize)]
struct LedgerVector {
    name: String,
    record_hex: String,
    entries: Vec<LedgerEntry>,
}

#[derive(Deserialize)]
struct LedgerEntry {
    repo_id: String,
    packet_id: PacketIdText,
    content_hex: String,
    key: String,
    fingerprint: String,
}

#[test]
fn ledger_records_are_those_of_python() {
    for vector in read::<LedgerVector>("ledger.json") {
        let made = |entry: &LedgerEntry| Entry::new(&entry.repo_id, &entry.packet_id.0, &bytes(&entry.content_hex));
        let entries: Vec<Entry> = vector.entries.iter().map(made).collect();
        for (entry, expected) in entries.iter().zip(&vector.entries) {
            assert_eq!(format!("{:032x}", entry.key), expected.key, "{}", vector.name);
            assert_eq!(format!("{:016x}", entry.fingerprint), expected.fingerprint, "{}", vector.name);
        }
        let record = bytes(&vector.record_hex);
        assert_eq!(ledger::decode(&record).unwrap().collect::<Vec<_>>(), entries, "{}", vector.name);
        assert_eq!(ledger::encode(entries), record, "{}", vector.name);
    }
}

#[derive(Deserialize)]
struct PartitionVector {
    key_hex: String,
    murmur2: i32,
    partitions: BTreeMap<String, i32>,
}

#[test]
fn partitions_are_those_of_java() {
    for vector in read::<PartitionVector>("partitions.json") {
        let key = bytes(&vector.key_hex);
        assert_eq!(murmur2(&key) as i32, vector.murmur2, "{}", vector.key_hex);
        for (count, partition) in vector.partitions {
            assert_eq!(partition_for(&key, count.parse().unwrap()), partition, "{} of {count}", vector.key_hex);
        }
    }
}

#[derive(Deserialize)]
struct PacketVector {
    name: String,
    encoded_hex: String,
    repo_id: String,
    content_hex: String,
    metadata: BTreeMap<String, String>,
    packet_id_hex: String,
    created_at: Option<TimestampText>,
    derived_id: PacketIdText,
}

#[derive(Deserialize)]
struct TimestampText {
    seconds: i64,
    nanos: i32,
}

#[test]
fn packets_of_python_are_read_and_written() {
    for vector in read::<PacketVector>("packets.json") {
        let packet = CodePacket::decode(bytes(&vector.encoded_hex).as_slice()).unwrap();
        let expected = CodePacket {
            repo_id: vector.repo_id,
            content: bytes(&vector.content_hex).into(),
            metadata: vector.metadata,
            packet_id: bytes(&vector.packet_id_hex).into(),
            created_at: vector
                .created_at
                .map(|TimestampText { seconds, nanos }| prost_types::Timestamp { seconds, nanos }),
        };
        assert_eq!(packet, expected, "{}", vector.name);
        let id = PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata);
        assert_eq!(id, vector.derived_id.0, "{}", vector.name);
        assert_eq!(CodePacket::decode(packet.encode_to_vec().as_slice()), Ok(packet), "{}", vector.name);
    }
}

#[derive(Deserialize)]
struct GzipVector {
    name: String,
    base64: String,
    repeat: usize,
    verdict: String,
    expanded: Option<u64>,
}

#[test]
fn every_content_gets_its_verdict() {
    for vector in read::<GzipVector>("gzip.json") {
        let content = BASE64_STANDARD.decode(&vector.base64).unwrap().repeat(vector.repeat);
        let (verdict, expanded) = match check_content(&content, &PacketLimits::default()) {
            Ok(expanded) => ("OK", Some(expanded)),
            Err(violation) => (violation.reason.as_str(), None),
        };
        assert_eq!((verdict, expanded), (vector.verdict.as_str(), vector.expanded), "{}", vector.name);
    }
}
