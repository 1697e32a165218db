//! A record as it was read from a topic, free of any Kafka client's types.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// One record of a source topic, owned, with everything that has to survive into another topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where the record was read from.
    pub source: TopicPartition,
    /// Its offset there.
    pub offset: i64,
    /// `CreateTime` in milliseconds since the Unix epoch; `None` when the writer set none.
    pub timestamp_ms: Option<i64>,
    /// The record's key; `None` is a null key.
    pub key: Option<Bytes>,
    /// The record's value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The record's headers in their order.
    pub headers: Headers,
}

impl Record {
    /// Bytes the record holds in memory, for batch limits.
    pub fn size(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + self.headers.packed.len()
    }
}

/// A record's headers, packed into one allocation: they are carried along far more often than they are read.
///
/// Order, duplicate names and null values are kept, since Kafka allows all three.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers {
    /// Per header: name length, name, value length (`NULL` for null), value; lengths are 4 bytes, little-endian.
    packed: Vec<u8>,
    unreadable: bool,
}

const NULL: u32 = u32::MAX;

impl Headers {
    /// No headers, with room for `bytes` of them.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { packed: Vec::with_capacity(bytes), unreadable: false }
    }

    /// Appends a header; `None` is a null value.
    pub fn push(&mut self, name: &str, value: Option<&[u8]>) {
        self.packed.extend_from_slice(&(name.len() as u32).to_le_bytes());
        self.packed.extend_from_slice(name.as_bytes());
        match value {
            None => self.packed.extend_from_slice(&NULL.to_le_bytes()),
            Some(value) => {
                self.packed.extend_from_slice(&(value.len() as u32).to_le_bytes());
                self.packed.extend_from_slice(value);
            }
        }
    }

    /// Notes that a header was left out because its name is not UTF-8.
    pub fn mark_unreadable(&mut self) {
        self.unreadable = true;
    }

    /// Whether a header was left out.
    pub fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The headers in their order.
    pub fn iter(&self) -> HeaderIter<'_> {
        HeaderIter { rest: &self.packed }
    }

    /// The value of the last header called `name`, as Kafka's own `lastHeader` does; null counts as absent.
    pub fn last(&self, name: &str) -> Option<&[u8]> {
        let mut rest = self.iter();
        let named = std::iter::from_fn(|| rest.next_raw()).filter(|(found, _)| *found == name.as_bytes());
        named.last().and_then(|(_, value)| value)
    }

    /// The same, when it is UTF-8.
    pub fn last_str(&self, name: &str) -> Option<&str> {
        self.last(name).and_then(|value| std::str::from_utf8(value).ok())
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a str, Option<&'a [u8]>);
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterates over [`Headers`].
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    rest: &'a [u8],
}

impl<'a> HeaderIter<'a> {
    fn length(&mut self) -> Option<u32> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(u32::from_le_bytes(*length))
    }

    fn take(&mut self, length: u32) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length as usize)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next header, its name not looked at.
    fn next_raw(&mut self) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let length = self.length()?;
        let name = self.take(length)?;
        let value = match self.length()? {
            NULL => None,
            length => Some(self.take(length)?),
        };
        Some((name, value))
    }
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.next_raw()?;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_order_duplicates_and_nulls() {
        let mut headers = Headers::default();
        headers.push("region", Some(b"us-east"));
        headers.push("null", None);
        headers.push("empty", Some(b""));
        headers.push("region", Some(b"eu-west"));
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(
            all,
            [
                ("region", Some(&b"us-east"[..])),
                ("null", None),
                ("empty", Some(&b""[..])),
                ("region", Some(b"eu-west"))
            ]
        );
        assert_eq!(headers.last_str("region"), Some("eu-west"));
        assert_eq!(headers.last("null"), None);
        assert_eq!(headers.last("absent"), None);
    }
}
