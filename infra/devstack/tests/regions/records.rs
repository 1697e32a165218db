//! Records as a test writes them in one region and finds them in the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use coderelay_devstack::Stack;
use coderelay_schemas::topics::PACKETS;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message, Offset, TopicPartitionList};

/// More than the mirror takes to be noticed, started again and to catch up.
const PATIENCE: Duration = Duration::from_secs(90);

/// The topic in which what the region `from` has taken arrives.
pub(crate) fn mirror_of(from: &Stack) -> String {
    format!("{}.{PACKETS}", from.region().unwrap())
}

/// In milliseconds. A record that is older than the topic's retention would be deleted before it is mirrored.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// What of a record must stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp: i64,
}

impl Record {
    /// One with nothing but a value, in partition 0.
    pub(crate) fn plain(value: &str) -> Self {
        let value = Some(value.as_bytes().to_vec());
        Self { partition: 0, key: None, value, headers: Vec::new(), timestamp: now() }
    }

    fn of(message: &OwnedMessage) -> Self {
        let header = |header: Header<&[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        Self {
            partition: message.partition(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
            timestamp: message.timestamp().to_millis().unwrap(),
        }
    }
}

/// Writes records to a region's packets and waits until all are acknowledged.
pub(crate) async fn write(region: &Stack, records: &[Record]) {
    let mut config = region.kafka_client();
    let producer: FutureProducer = config.set("acks", "all").set("message.max.bytes", "6291456").create().unwrap();
    let deliveries = records.iter().map(|record| {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
        let mut next =
            FutureRecord::to(PACKETS).partition(record.partition).timestamp(record.timestamp).headers(headers);
        next.key = record.key.as_ref();
        next.payload = record.value.as_ref();
        producer.send(next, PATIENCE)
    });
    for delivered in futures::future::join_all(deliveries).await {
        delivered.unwrap();
    }
}

/// Reads `topic` from its beginning until `complete` is content with what was read.
pub(crate) async fn read_until(
    region: &Stack,
    topic: String,
    complete: impl Fn(&[Record]) -> bool + Send + 'static,
) -> Vec<Record> {
    let mut config = region.kafka_client();
    config.set("group.id", "test").set("enable.auto.commit", "false").set("fetch.message.max.bytes", "6291456");
    let read = move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition_offset(&topic, partition.id(), Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut records = Vec::new();
        while !complete(&records) {
            assert!(Instant::now() < deadline, "only {} records of {topic} arrived", records.len());
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                records.push(Record::of(&message.detach()));
            }
        }
        records
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Waits until every one of these has arrived from the region `from` in the region `to`; however often.
pub(crate) async fn arrive(from: &Stack, to: &Stack, records: &[Record]) {
    let expected: BTreeSet<_> = records.iter().map(|record| record.value.clone()).collect();
    let all_there = move |read: &[Record]| {
        let read: BTreeSet<_> = read.iter().map(|record| record.value.clone()).collect();
        expected.is_subset(&read)
    };
    read_until(to, mirror_of(from), all_there).await;
}
