//! A Kafka record of any of the topics, decoded for display.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coderelay_runtime::kafka;
use coderelay_schemas::dlq::DLQ_REASON;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::PacketLimits;
use coderelay_schemas::{headers, ledger};
use prost::Message as _;
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;
use serde::Serialize;

use crate::output::{Row, size};
use crate::packer::{PATH, gunzip};
use crate::position::rfc3339;

/// How a topic's values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `CodePacket`.
    Packet,
    /// Packed dedup entries.
    Ledger,
}

/// One record. What cannot be decoded says why in `error`.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// RFC 3339; ingest's clock.
    pub(crate) timestamp: String,
    pub(crate) key: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
    /// Size of the value.
    pub(crate) bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) packet: Option<PacketView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ledger: Option<Vec<EntryView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// A packet's fields as text.
#[derive(Debug, Serialize)]
pub(crate) struct PacketView {
    pub(crate) repo_id: String,
    pub(crate) packet_id: String,
    pub(crate) created_at: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Size of the gzip content.
    pub(crate) content_bytes: usize,
    /// The unpacked content, where asked for.
    #[serde(flatten)]
    pub(crate) content: Option<Content>,
}

/// Unpacked content: text where it is UTF-8, else base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Content {
    #[serde(rename = "content")]
    Text(String),
    #[serde(rename = "content_base64")]
    Binary(String),
    #[serde(rename = "content_error")]
    Unreadable(String),
}

/// One dedup entry: 128-bit key and 64-bit fingerprint in hexadecimal.
#[derive(Debug, Serialize)]
pub(crate) struct EntryView {
    pub(crate) key: String,
    pub(crate) fingerprint: String,
}

impl Record {
    /// Decodes a message. `content` unpacks the packet's content too.
    pub(crate) fn decode(message: &BorrowedMessage<'_>, encoding: Encoding, content: bool) -> Self {
        let value = message.payload().unwrap_or_default();
        let mut record = Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: rfc3339(message.timestamp().to_millis()),
            key: message.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            headers: headers_of(message),
            bytes: value.len(),
            packet: None,
            ledger: None,
            error: None,
        };
        match encoding {
            _ if message.payload().is_none() => record.error = Some("no value (a tombstone)".to_owned()),
            Encoding::Packet => match CodePacket::decode(value) {
                Ok(packet) => record.packet = Some(PacketView::new(&packet, content)),
                Err(error) => record.error = Some(format!("no CodePacket: {error}")),
            },
            Encoding::Ledger => match ledger::decode(value) {
                Ok(entries) => record.ledger = Some(entries.map(EntryView::from).collect()),
                Err(error) => record.error = Some(error.to_string()),
            },
        }
        record
    }

    /// The repository, from the packet or else from the key.
    pub(crate) fn repo_id(&self) -> Option<&str> {
        self.packet.as_ref().map(|packet| packet.repo_id.as_str()).or(self.key.as_deref())
    }
}

impl Row for Record {
    const HEADER: &'static [&'static str] = &["time", "record", "reason", "repository", "packet id", "size", "path"];

    fn cells(&self) -> Vec<String> {
        let packet = self.packet.as_ref();
        let id = packet.map(|packet| packet.packet_id.as_str()).filter(|id| !id.is_empty());
        let id = id.or_else(|| self.headers.get(headers::PACKET_ID).map(String::as_str)).unwrap_or("-");
        let last = match (&self.error, &self.ledger) {
            (Some(error), _) => format!("({error})"),
            (_, Some(entries)) => format!("{} entries", entries.len()),
            _ => packet.and_then(|packet| packet.metadata.get(PATH)).cloned().unwrap_or_default(),
        };
        let mut cells = vec![self.timestamp.clone(), format!("{:>10}", format!("{}@{}", self.partition, self.offset))];
        cells.extend(self.headers.get(DLQ_REASON).map(|reason| format!("{reason:<14}")));
        if self.ledger.is_none() {
            cells.extend([self.repo_id().unwrap_or("-").to_owned(), id.to_owned()]);
        }
        cells.extend([format!("{:>10}", size(self.bytes as u64)), last]);
        cells
    }
}

/// When a packet was made, in milliseconds since the epoch. None where it does not say so, or that is out of all bounds.
pub(crate) fn created_at_ms(packet: &CodePacket) -> Option<i64> {
    let at = packet.created_at?;
    at.seconds.checked_mul(1000)?.checked_add(i64::from(at.nanos) / 1_000_000)
}

impl PacketView {
    pub(crate) fn new(packet: &CodePacket, content: bool) -> Self {
        Self {
            repo_id: packet.repo_id.clone(),
            packet_id: hex::encode(&packet.packet_id),
            created_at: rfc3339(created_at_ms(packet)),
            metadata: packet.metadata.clone().into_iter().collect(),
            content_bytes: packet.content.len(),
            content: content.then(|| Content::unpack(&packet.content)),
        }
    }
}

impl Content {
    /// Unpacks gzip, within the limits packets have.
    pub(crate) fn unpack(packed: &[u8]) -> Self {
        match gunzip(packed, PacketLimits::default().expanded_max.as_u64()) {
            Ok(content) => Self::of(content),
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }

    /// Any bytes.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Binary(BASE64_STANDARD.encode(error.as_bytes())),
        }
    }

    /// For people: text as it is, anything else described.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Binary(base64) => format!("(binary, base64) {base64}"),
            Self::Unreadable(error) => format!("(cannot unpack: {error})"),
        }
    }
}

impl From<ledger::Entry> for EntryView {
    fn from(entry: ledger::Entry) -> Self {
        Self { key: format!("{:032x}", entry.key), fingerprint: format!("{:016x}", entry.fingerprint) }
    }
}

fn headers_of(message: &BorrowedMessage<'_>) -> BTreeMap<String, String> {
    let Some(headers) = message.headers() else { return BTreeMap::new() };
    kafka::headers(headers)
        .map(|header| {
            let Some(header) = header else { return ("(a name that is not UTF-8)".to_owned(), String::new()) };
            let value = header.value.map(String::from_utf8_lossy).unwrap_or_default();
            (header.key.to_owned(), value.into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_time_and_any_content_can_be_shown(seconds in any::<i64>(), nanos in any::<i32>(), content in any::<Vec<u8>>()) {
            let mut packet = CodePacket { content: content.into(), ..CodePacket::default() };
            let created_at = packet.created_at.get_or_insert_default();
            (created_at.seconds, created_at.nanos) = (seconds, nanos);
            serde_json::to_string(&PacketView::new(&packet, true)).unwrap();
        }
    }

    #[test]
    fn content_is_text_where_it_can_be() {
        assert_eq!(Content::of(b"fn main() {}".to_vec()), Content::Text("fn main() {}".into()));
        assert_eq!(Content::of(vec![0xff, 0xfe]), Content::Binary("//4=".into()));
        assert!(matches!(Content::unpack(b"not gzip"), Content::Unreadable(_)));
    }

    #[test]
    fn a_packet_is_one_flat_json_object_with_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.rs");
        std::fs::write(&file, "fn main() {}").unwrap();
        let packed = crate::packer::tests::packer().pack(&Source { label: "a.rs".into(), file }).unwrap();
        let json = serde_json::to_value(PacketView::new(&packed.packet, true)).unwrap();
        assert_eq!(json["content"], "fn main() {}");
        assert_eq!(json["metadata"]["path"], "a.rs");
        assert_eq!(json["packet_id"], packed.id.to_string());
        assert_eq!(json["created_at"], "1970-01-01T00:00:00.000Z");
    }
}
