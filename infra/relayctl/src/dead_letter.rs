//! One dead letter: the original record, and why it was put aside.

use std::fmt;
use std::str::FromStr;

use coderelay_runtime::kafka;
use coderelay_schemas::dlq::{
    DLQ_ATTEMPTS, DLQ_DETAIL, DLQ_OFFSET, DLQ_PARTITION, DLQ_REASON, DLQ_TIMESTAMP, DLQ_TOPIC, DlqReason, HEADERS,
};
use coderelay_schemas::headers::PACKET_ID;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};
use serde::Serialize;

use crate::output::{Row, size};
use crate::position::rfc3339;

/// Where a record is in the dead-letter topic: `partition@offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('@').or_else(|| text.split_once(':'));
        parts
            .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)))
            .map(|(partition, offset)| Self { partition, offset })
            .ok_or_else(|| "expected PARTITION@OFFSET as `dlq list` shows it, e.g. 3@17".to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// A record of the dead-letter topic.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub(crate) place: Place,
    /// Its record's, in milliseconds since the epoch: the topic keeps what the processor gives (`CreateTime`).
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// All headers with a readable name, in their order; a header may have no value.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Where a dead letter came from, and goes back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

impl DeadLetter {
    pub(crate) fn read(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            let readable = kafka::headers(headers).flatten();
            readable.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Self {
            place: Place { partition: message.partition(), offset: message.offset() },
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        }
    }

    /// The last value of a header, as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    fn number<N: FromStr>(&self, name: &str) -> Option<N> {
        self.header(name)?.parse().ok()
    }

    pub(crate) fn reason(&self) -> Option<DlqReason> {
        self.header(DLQ_REASON)?.parse().ok()
    }

    /// `None` where the headers do not say, or say nonsense.
    pub(crate) fn origin(&self) -> Option<Origin> {
        let topic = self.header(DLQ_TOPIC).filter(|topic| !topic.is_empty())?;
        let partition = self.number(DLQ_PARTITION).filter(|partition| *partition >= 0)?;
        Some(Origin { topic: topic.to_owned(), partition })
    }

    /// The headers the record had before: all but `dlq.*`.
    pub(crate) fn original_headers(&self) -> OwnedHeaders {
        let original = self.headers.iter().filter(|(key, _)| !HEADERS.contains(&key.as_str()));
        original
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }))
    }

    /// Key and value: what makes it the same record, wherever it is.
    pub(crate) fn identity(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.key, &self.value] {
            let length = part.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64);
            hasher.update(&length.to_le_bytes()).update(part.as_deref().unwrap_or_default());
        }
        hasher.finalize()
    }

    /// The packet, where the value is one.
    pub(crate) fn packet(&self) -> Option<CodePacket> {
        CodePacket::decode(self.value.as_deref()?).ok()
    }
}

/// A dead letter in `dlq list`; one line of JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    partition: i32,
    offset: i64,
    timestamp: String,
    reason: String,
    detail: String,
    source_topic: String,
    source_partition: Option<i32>,
    source_offset: Option<i64>,
    source_timestamp: String,
    attempts: Option<u32>,
    key: Option<String>,
    packet_id: Option<String>,
    bytes: usize,
}

impl From<&DeadLetter> for Listed {
    fn from(letter: &DeadLetter) -> Self {
        let header = |name| letter.header(name).unwrap_or_default().to_owned();
        let id = letter.header(PACKET_ID).map(str::to_owned);
        let id = id.or_else(|| letter.packet().map(|packet| hex::encode(&packet.packet_id)));
        Self {
            partition: letter.place.partition,
            offset: letter.place.offset,
            timestamp: rfc3339(letter.timestamp),
            reason: header(DLQ_REASON),
            detail: header(DLQ_DETAIL),
            source_topic: header(DLQ_TOPIC),
            source_partition: letter.number(DLQ_PARTITION),
            source_offset: letter.number(DLQ_OFFSET),
            source_timestamp: rfc3339(letter.number(DLQ_TIMESTAMP)),
            attempts: letter.number(DLQ_ATTEMPTS),
            key: letter.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
            packet_id: id.filter(|id| !id.is_empty()),
            bytes: letter.value.as_ref().map_or(0, Vec::len),
        }
    }
}

impl Row for Listed {
    const HEADER: &'static [&'static str] =
        &["time", "record", "reason", "source", "key", "packet id", "size", "detail"];

    fn cells(&self) -> Vec<String> {
        let known = |number: Option<String>| number.unwrap_or_else(|| "?".to_owned());
        let (partition, offset) =
            (self.source_partition.map(|p| p.to_string()), self.source_offset.map(|o| o.to_string()));
        vec![
            self.timestamp.clone(),
            format!("{:>10}", format!("{}@{}", self.partition, self.offset)),
            format!("{:<14}", self.reason),
            format!("{} {}@{}", self.source_topic, known(partition), known(offset)),
            self.key.clone().unwrap_or_else(|| "-".to_owned()),
            self.packet_id.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:>10}", size(self.bytes as u64)),
            self.detail.clone(),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rdkafka::message::Headers as _;

    pub(crate) fn letter(headers: &[(&str, &str)]) -> DeadLetter {
        DeadLetter {
            place: Place { partition: 3, offset: 17 },
            timestamp: Some(0),
            key: Some(b"team/relay".to_vec()),
            value: Some(vec![0xff]),
            headers: headers.iter().map(|(key, value)| ((*key).to_owned(), Some(value.as_bytes().to_vec()))).collect(),
        }
    }

    proptest! {
        /// Anyone may write to the topic.
        #[test]
        fn any_headers_can_be_listed(
            values in prop::collection::vec((0..HEADERS.len(), any::<Option<Vec<u8>>>()), 0..12),
            number in any::<i64>(),
            timestamp in any::<Option<i64>>(),
            value in any::<Option<Vec<u8>>>(),
        ) {
            let mut headers: Vec<_> = values.into_iter().map(|(at, value)| (HEADERS[at].to_owned(), value)).collect();
            headers.push((DLQ_TIMESTAMP.to_owned(), Some(number.to_string().into_bytes())));
            let letter = DeadLetter { timestamp, value, headers, ..letter(&[]) };
            prop_assert_eq!(Listed::from(&letter).cells().len(), Listed::HEADER.len());
            prop_assert_eq!(letter.original_headers().count(), 0);
            let _ = (letter.reason(), letter.origin(), letter.identity());
        }
    }

    #[test]
    fn a_place_is_written_as_it_is_listed() {
        assert_eq!("3@17".parse::<Place>().unwrap(), Place { partition: 3, offset: 17 });
        assert_eq!("3:17".parse::<Place>().unwrap(), Place { partition: 3, offset: 17 });
        assert!("17".parse::<Place>().is_err());
    }

    #[test]
    fn replay_keeps_every_header_but_the_dead_letters_own() {
        let letter = letter(&[
            ("packet-id", "00"),
            (DLQ_REASON, "expired"),
            ("traceparent", "t"),
            ("dlq.of-somebody-else", "x"),
            (DLQ_TOPIC, "code.packets.v1"),
        ]);
        let headers = letter.original_headers();
        let keys: Vec<_> = headers.iter().map(|header| header.key.to_owned()).collect();
        assert_eq!(keys, ["packet-id", "traceparent", "dlq.of-somebody-else"]);
    }

    #[test]
    fn the_origin_must_be_complete() {
        let complete = letter(&[(DLQ_TOPIC, "t"), (DLQ_PARTITION, "4")]);
        assert_eq!(complete.origin(), Some(Origin { topic: "t".into(), partition: 4 }));
        assert_eq!(letter(&[(DLQ_TOPIC, "t")]).origin(), None);
        assert_eq!(letter(&[(DLQ_TOPIC, "t"), (DLQ_PARTITION, "-1")]).origin(), None);
    }
}
