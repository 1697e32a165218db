//! What a world leaves of one packet, as it should be.

use std::time::{Duration, UNIX_EPOCH};

use coderelay_schemas::dlq;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use loadtest::chaos::evidence::{Key, Remembered, Row};
use loadtest::chaos::history::{Event, What};
use loadtest::chaos::packets::Packets;
use loadtest::chaos::plan::Version;
use loadtest::chaos::topic::Record;
use prost::Message as _;

pub(crate) const TOPIC: &str = "code.packets.v1";
pub(crate) const NOW: u64 = 1_790_000_000_000;

/// Three packets.
pub(crate) fn packets() -> Packets {
    Packets::new(1, 3, UNIX_EPOCH + Duration::from_millis(NOW))
}

pub(crate) fn version(packet: u32, content: u8) -> Version {
    Version { packet, content }
}

/// That it was acknowledged at `offset`.
pub(crate) fn committed(version: Version, region: usize, offset: i64) -> Event {
    Event { at: 0.0, what: What::Committed { version, region, partition: 0, offset } }
}

/// What the ingest of `region` writes so many milliseconds after `NOW`.
pub(crate) fn record(packets: &Packets, region: &str, offset: i64, after: i64, version: Version) -> Record {
    let packet = packets.packet(version).unwrap();
    Record {
        partition: 0,
        offset,
        timestamp: Some(NOW as i64 + after),
        key: Some(packet.repo_id.clone().into_bytes()),
        value: Some(packet.encode_to_vec()),
        headers: vec![("region".to_owned(), Some(region.as_bytes().to_vec()))],
    }
}

/// The same elsewhere.
pub(crate) fn at(record: &Record, offset: i64) -> Record {
    Record { offset, ..record.clone() }
}

/// Its dead letter, `topic` being where it was read.
pub(crate) fn letter(record: &Record, topic: &str, reason: &str) -> Record {
    let fields = [
        (dlq::DLQ_TOPIC, topic.to_owned()),
        (dlq::DLQ_PARTITION, record.partition.to_string()),
        (dlq::DLQ_OFFSET, record.offset.to_string()),
        (dlq::DLQ_REASON, reason.to_owned()),
    ];
    let headers = fields.map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
    Record { headers: record.headers.iter().cloned().chain(headers).collect(), ..record.clone() }
}

/// Its entry in the ledger, seen in `topic`.
pub(crate) fn entry(packets: &Packets, topic: &str, version: Version) -> Remembered {
    let packet = packets.packet(version).unwrap();
    let id = PacketId::from_slice(&packet.packet_id).unwrap();
    let entry = Entry::new(&packet.repo_id, &id, &packet.content);
    Remembered { topic: Some(topic.to_owned()), entry, offset: 0 }
}

/// Its row, written at the time of `record`.
pub(crate) fn row(packets: &Packets, record: &Record, version: Version) -> (Key, Row) {
    let packet = packets.packet(version).unwrap();
    let row = Row {
        day: (NOW / 86_400_000 + (1 << 31)) as u32,
        content: packet.content.to_vec(),
        metadata: packet.metadata.clone().into_iter().collect(),
        created_at: NOW as i64,
        ingested_at: record.timestamp.unwrap(),
        region: record.header("region").map(str::to_owned),
        written: record.timestamp.unwrap() * 1000,
    };
    ((packet.repo_id, packet.packet_id.to_vec()), row)
}

/// The promises that are broken.
pub(crate) fn kinds(violations: Vec<loadtest::chaos::verdict::Violation>) -> Vec<loadtest::chaos::verdict::Kind> {
    let mut kinds: Vec<_> = violations.into_iter().map(|violation| violation.kind).collect();
    kinds.dedup();
    kinds
}
