//! From a record to a verified packet and its row, or to the reason why not.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::validate::{self, PacketLimits, Reason, Violation};
use coderelay_schemas::{headers, pb};
use prost::Message;

use crate::record::Record;

/// A packet that may be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Packet {
    /// What the ledger will say of it.
    pub entry: Entry,
    /// What the store will say of it.
    pub row: Row,
}

/// One row of the table `packets`. Derived from the record alone, so that writing it again changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Partition key, with the UTC day of `created_at_ms`.
    pub repo_id: String,
    /// Clustering key.
    pub packet_id: PacketId,
    /// The gzip content as received.
    pub content: Bytes,
    /// Sorted, so that two regions write the same bytes for the same frozen map.
    pub metadata: BTreeMap<String, String>,
    /// Event time, milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// Record timestamp, milliseconds since the Unix epoch; in microseconds it is the write timestamp.
    pub ingested_at_ms: i64,
    /// The region whose ingest took the packet, if its header says so.
    pub region: Option<String>,
}

/// Bytes of a record that fit into every topic with room to spare for Kafka's framing. A compressed batch may bring larger ones.
pub const PUBLISHABLE_MAX: usize = 5 * 1024 * 1024 - 64 * 1024;
/// Milliseconds of a UTC day.
const DAY_MS: i64 = 86_400_000;

impl Row {
    /// UTC day of the event time, counted from the Unix epoch.
    pub fn day(&self) -> i64 {
        self.created_at_ms.div_euclid(DAY_MS)
    }

    /// Approximate bytes of the row in a request.
    pub fn size(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
        self.repo_id.len() + self.content.len() + metadata + 64
    }
}

/// Why a record goes to the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason, for filters.
    pub reason: DlqReason,
    /// The reason, for people.
    pub detail: String,
    /// How often the store was asked; 0 when it never was.
    pub attempts: u32,
}

impl Rejection {
    /// A rejection before the store was asked.
    pub fn new(reason: DlqReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), attempts: 0 }
    }

    fn invalid(detail: impl Into<String>) -> Self {
        Self::new(DlqReason::InvalidPacket, detail)
    }
}

impl From<Violation> for Rejection {
    fn from(violation: Violation) -> Self {
        let reason = match violation.reason {
            Reason::ContentNotGzip | Reason::ContentCorrupt => DlqReason::GzipCorrupt,
            Reason::ContentBomb => DlqReason::GzipBomb,
            Reason::ContentTooLarge => DlqReason::TooLarge,
            _ => DlqReason::InvalidPacket,
        };
        Self::new(reason, format!("{}: {}", violation.field, violation.description))
    }
}

/// Decodes and verifies `record`.
///
/// Ingest marks what it has verified in full; anything else is verified here, and completed as ingest would have done, with the record's
/// own time in place of the clock: a record that is read twice has to give the same row twice.
///
/// # Errors
/// The reason for the dead-letter topic.
pub fn decode(record: &Record, limits: &PacketLimits) -> Result<Packet, Rejection> {
    if record.size() > PUBLISHABLE_MAX {
        let detail = format!("the record has {} bytes; at most {PUBLISHABLE_MAX} can be published", record.size());
        return Err(Rejection::new(DlqReason::TooLarge, detail));
    }
    if record.headers.is_unreadable() {
        return Err(Rejection::invalid("the name of a header is not UTF-8; the dead letter lacks that header"));
    }
    let value = record.value.as_ref().ok_or_else(|| Rejection::invalid("the record has no value (a tombstone)"))?;
    let mut packet = pb::CodePacket::decode(value.clone())
        .map_err(|error| Rejection::new(DlqReason::DecodeError, error.to_string()))?;
    check_key(record, &packet)?;
    validate::check_fields(&packet, limits).map_err(most_telling)?;
    if record.headers.last(headers::CHECKED) != Some(headers::CHECKED_GZIP.as_bytes()) {
        validate::check_content(&packet.content, limits)?;
    }
    let ingested_at_ms = record.timestamp_ms.unwrap_or_else(|| created_at_ms(&packet).unwrap_or(0));
    let packet_id = validate::complete(&mut packet, time_of(ingested_at_ms), limits);
    let row = Row {
        created_at_ms: created_at_ms(&packet).unwrap_or(ingested_at_ms),
        packet_id,
        content: packet.content,
        metadata: packet.metadata,
        ingested_at_ms,
        region: record.headers.last_str(headers::REGION).map(str::to_owned),
        repo_id: packet.repo_id,
    };
    Ok(Packet { entry: Entry::new(&row.repo_id, &row.packet_id, &row.content), row })
}

/// The key decides the partition, and the partition decides which worker's memory sees the packet.
fn check_key(record: &Record, packet: &pb::CodePacket) -> Result<(), Rejection> {
    match record.key.as_deref() {
        None => Err(Rejection::invalid("the record has no key; it has to be the packet's repo_id")),
        Some(key) if key != packet.repo_id.as_bytes() => Err(Rejection::invalid(format!(
            "the record's key {:?} is not the packet's repo_id {:?}",
            String::from_utf8_lossy(&key[..key.len().min(256)]),
            packet.repo_id.chars().take(256).collect::<String>()
        ))),
        Some(_) => Ok(()),
    }
}

/// Of several violations the one with a reason of its own says most.
fn most_telling(violations: Vec<Violation>) -> Rejection {
    let mut rejections = violations.into_iter().map(Rejection::from);
    let first = rejections.next().unwrap_or_else(|| Rejection::invalid("the packet is invalid"));
    if first.reason != DlqReason::InvalidPacket {
        return first;
    }
    rejections.find(|rejection| rejection.reason != DlqReason::InvalidPacket).unwrap_or(first)
}

fn created_at_ms(packet: &pb::CodePacket) -> Option<i64> {
    let time = packet.created_at.as_ref()?;
    time.seconds.checked_mul(1000)?.checked_add(i64::from(time.nanos) / 1_000_000)
}

fn time_of(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    if millis >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}
