//! `mirror restore` between two real regions: one loses its disks, gets its packets back, and is mirrored again from where it goes on.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

#[path = "support/command.rs"]
mod command;

use std::time::{Duration, Instant};

use coderelay_devstack::{Observer, Regions, Stack};
use coderelay_schemas::topics::{PACKETS, PARTITIONS, TopicNames};
use command::relayctl;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use relayctl::Exit;
use serde_json::Value;

const MIRROR: &str = "us-east.code.packets.v1";
const OFFSETS: &str = "mm2-offsets.us-east.internal";
const PATIENCE: Duration = Duration::from_secs(90);
/// What `MirrorMaker` may take to leave.
const GRACE: Duration = Duration::from_secs(20);

/// What of a record has to stay as it was.
type Record = (i32, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>, Option<i64>);

/// Every record of a topic.
fn read(stack: &Stack, topic: &str) -> Vec<Record> {
    let mut config = stack.kafka_client();
    let consumer: BaseConsumer = config.set("group.id", "test").set("enable.auto.commit", "false").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let (mut partitions, mut remaining) = (TopicPartitionList::new(), 0);
    for partition in metadata.topics()[0].partitions() {
        let (low, end) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE).unwrap();
        partitions.add_partition_offset(topic, partition.id(), Offset::Offset(low)).unwrap();
        remaining += end - low;
    }
    consumer.assign(&partitions).unwrap();
    let mut records = Vec::new();
    while remaining > 0 {
        let Some(message) = consumer.poll(PATIENCE) else { panic!("{remaining} records of {topic} are not delivered") };
        let message = message.unwrap();
        let owned = |bytes: &[u8]| bytes.to_vec();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers = headers.map(|header| (header.key.to_owned(), header.value.map(owned))).collect();
        let (key, value) = (message.key().map(owned), message.payload().map(owned));
        records.push((message.partition(), key, value, headers, message.timestamp().to_millis()));
        remaining -= 1;
    }
    records.sort();
    records
}

/// How often each value is in partition 0 of the mirror, of those that begin with `name`.
fn arrived(stack: &Stack, name: &str) -> Vec<usize> {
    let mut counts = Vec::new();
    for (_, _, value, ..) in read(stack, MIRROR) {
        let value = String::from_utf8(value.unwrap_or_default()).unwrap();
        if let Some(number) = value.strip_prefix(name).and_then(|number| number.trim().parse::<usize>().ok()) {
            counts.resize(counts.len().max(number + 1), 0);
            counts[number] += 1;
        }
    }
    counts
}

/// Writes so many records to the packets of a region, the last to partition 1 and the others to partition 0.
async fn write(stack: &Stack, name: &str, count: usize) {
    let producer: FutureProducer = stack.kafka_client().create().unwrap();
    for number in 0..count {
        let value = format!("{name} {number}");
        let headers = OwnedHeaders::new()
            .insert(Header { key: "twice", value: Some("a") })
            .insert(Header { key: "twice", value: None::<&str> });
        let partition = i32::from(number + 1 == count);
        let record = FutureRecord::to(PACKETS).key("repo").payload(&value).partition(partition).headers(headers);
        producer.send(record, PATIENCE).await.unwrap();
    }
}

/// Waits until the last two of `count` records of this name have arrived in the other region: one in either partition.
async fn until_mirrored(stack: &Stack, name: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(arrived(stack, name).as_slice(), [.., one, other] if *one > 0 && *other > 0)
        || arrived(stack, name).len() < count
    {
        assert!(Instant::now() < deadline, "{:?}", arrived(stack, name));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn restore(regions: &Regions) -> (Exit, Value) {
    let (from, to) = (regions.eu_west().bootstrap_servers(), regions.us_east().bootstrap_servers());
    let (from, to) = (format!("eu-west,kafka={from}"), format!("us-east,kafka={to}"));
    let (exit, bytes) = relayctl(&["mirror", "restore", "--from", &from, "--to", &to, "--output", "json"]).await;
    (exit, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// us-east dies, and is there again without its disks.
async fn lose(regions: &Regions) {
    regions.us_east().kill().await.unwrap();
    regions.mirror().process().stop(GRACE).await.unwrap();
    regions.us_east().restart_empty(&Observer::default()).await.unwrap();
    regions.us_east().create_topics(&TopicNames::default(), PARTITIONS).await.unwrap();
}

async fn mirror_again(regions: &Regions) {
    regions.mirror().process().start().unwrap();
    regions.mirror().process().ready().await.unwrap();
}

/// The oldest records of the mirror's partition 0 have outlived its retention.
async fn delete_oldest(stack: &Stack, before: i64) {
    let admin: AdminClient<DefaultClientContext> = stack.kafka_client().create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(MIRROR, 0, Offset::Offset(before)).unwrap();
    admin.delete_records(&offsets, &AdminOptions::new()).await.unwrap();
}

/// The value that `MirrorMaker` has noted for partition 0 of the packets, of which there has to be one key.
fn noted(stack: &Stack) -> (Vec<u8>, i32, Vec<u8>) {
    let own = read(stack, OFFSETS).into_iter().filter(|(_, key, ..)| {
        let key = String::from_utf8(key.clone().unwrap()).unwrap();
        key.contains(r#""partition":0"#) && key.contains(PACKETS)
    });
    let keys: Vec<_> = own.clone().map(|(place, key, ..)| (place, key)).collect();
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "one key, in one place: {keys:?}");
    let last = own.max_by_key(|(.., timestamp)| *timestamp).unwrap();
    (last.1.unwrap(), last.0, last.2.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_without_its_disks_gets_back_what_was_mirrored_and_what_it_takes_first_is_mirrored_again() {
    let regions = Regions::start(Stack::builder()).await.unwrap();
    let (east, west) = (regions.us_east(), regions.eu_west());
    write(east, "first", 100).await;
    until_mirrored(west, "first", 100).await;
    delete_oldest(west, 60).await;
    let mirrored = read(west, MIRROR);
    assert_eq!(mirrored.len(), 40);

    assert_eq!(restore(&regions).await.0, Exit::Failure, "MirrorMaker is running");

    // As if an earlier run had been interrupted: it goes on where that was.
    lose(&regions).await;
    assert_eq!(restore(&regions).await.0, Exit::Success);
    let stale = (noted(west).0, noted(west).1, r#"{"offset":98}"#);
    let (exit, again) = restore(&regions).await;
    assert_eq!((exit, &again["records"]), (Exit::Success, &Value::from(0)), "{again:#}");
    assert_eq!(again["partitions"][0]["already_there"], 39);
    assert_eq!(read(east, PACKETS), mirrored, "the same in every respect, once");
    assert_eq!(noted(west).2, br#"{"offset":38}"#);

    // With the offsets of the topic that is no more, what comes first after the return is skipped. This is what the restoration prevents.
    let producer: FutureProducer = west.kafka_client().create().unwrap();
    let record = FutureRecord::to(OFFSETS).key(&stale.0).partition(stale.1).payload(stale.2);
    producer.send(record, PATIENCE).await.unwrap();
    write(east, "negative", 100).await;
    mirror_again(&regions).await;
    until_mirrored(west, "negative", 100).await;
    let skipped = arrived(west, "negative").iter().filter(|count| **count == 0).count();
    assert_eq!(skipped, 60, "{:?}", arrived(west, "negative"));

    regions.mirror().process().stop(GRACE).await.unwrap();
    let (exit, _) = restore(&regions).await;
    assert_eq!(exit, Exit::Failure, "us-east has taken packets of its own");

    let mirrored = read(west, MIRROR);
    lose(&regions).await;
    let (exit, report) = restore(&regions).await;
    assert_eq!((exit, &report["records"]), (Exit::Success, &Value::from(mirrored.len())), "{report:#}");
    assert_eq!(read(east, PACKETS), mirrored);
    write(east, "second", 100).await;
    mirror_again(&regions).await;
    until_mirrored(west, "second", 100).await;
    assert_eq!(arrived(west, "second"), [1; 100], "each, once");
    assert_eq!(read(west, MIRROR).len(), mirrored.len() + 100, "and nothing that was restored a second time");
    assert_eq!(read(east, PACKETS), read(west, MIRROR));
}
