//! A topic read from its first record to its end.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::message::{BorrowedMessage, Headers, Message};

use super::plan::PARTITIONS;
use crate::reader;

/// How long a topic may take to be read, and its transactions to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A record, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub partition: i32,
    /// Where there.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// All of a record but its place: key, value, headers and timestamp, which a mirror keeps and a processor publishes.
pub type Content<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [(String, Option<Vec<u8>>)], Option<i64>);

impl Record {
    /// All of it but its place.
    pub fn content(&self) -> Content<'_> {
        (self.key.as_deref(), self.value.as_deref(), &self.headers, self.timestamp)
    }

    /// The text of its last header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
        }
    }
}

/// Everything that was committed to `topic`, by partition and in order. Waits for transactions that are open at its end.
///
/// # Errors
/// When one stays open, or the brokers do not answer.
pub fn read(bootstrap: &str, topic: &str) -> Result<Vec<Vec<Record>>> {
    let mut records = vec![Vec::new(); PARTITIONS as usize];
    reader::read_all(bootstrap, topic, PATIENCE, &mut |message| {
        records[message.partition() as usize].push(Record::of(message));
    })
    .with_context(|| format!("cannot read {topic}"))?;
    Ok(records)
}
