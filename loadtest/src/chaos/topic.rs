//! A topic read from its first record to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::plan::PARTITIONS;
use crate::reader::watermarks;

/// How long a topic may take to be read, and its transactions to end.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

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

impl Record {
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

/// A consumer of all of `topic` from its beginning, as a data team's: it sees what is committed, and nothing else.
///
/// # Errors
/// When librdkafka refuses the configuration.
pub fn consumer(mut config: ClientConfig, topic: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = config
        .set("group.id", "coderelay-chaos")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

/// Everything that was committed to `topic`, by partition and in order. Waits for transactions that are open at its end.
///
/// # Errors
/// When one stays open, or the brokers do not answer.
pub fn read(config: &ClientConfig, topic: &str) -> Result<Vec<Vec<Record>>> {
    let deadline = Instant::now() + PATIENCE;
    await_stable(config, topic, deadline)?;
    let consumer = consumer(config.clone(), topic)?;
    let mut records = vec![Vec::new(); PARTITIONS as usize];
    let mut open: Vec<i32> = (0..PARTITIONS).collect();
    while !open.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => records[message.partition() as usize].push(Record::of(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|other| *other != partition),
            Some(Err(_)) | None => {}
        }
        if Instant::now() > deadline {
            bail!("{topic} could not be read to its end: partitions {open:?}");
        }
    }
    Ok(records)
}

/// Until then a transaction is open, or its marker still under way.
fn await_stable(config: &ClientConfig, topic: &str, deadline: Instant) -> Result<()> {
    let view = |isolation: &str| -> Result<BaseConsumer> {
        let consumer = config.clone().set("group.id", "coderelay-chaos").set("isolation.level", isolation).create();
        consumer.context("cannot make a consumer")
    };
    let (committed, all) = (view("read_committed")?, view("read_uncommitted")?);
    for partition in 0..PARTITIONS {
        let (_, end) = watermarks(&all, topic, partition)?;
        while watermarks(&committed, topic, partition)?.1 < end {
            if Instant::now() > deadline {
                bail!("a transaction stays open in {topic}-{partition}, below {end}");
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}
