//! `mirror restore` between two real regions: one loses its disks, gets its packets back, and is mirrored again from where it goes on.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

#[path = "support/command.rs"]
mod command;

use std::time::{Duration, Instant};

use coderelay_devstack::{Observer, Regions, Stack, free_port};
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

/// `mirror watch` of both regions, and what it serves.
struct Watch {
    _process: tokio::process::Child,
    url: String,
}

impl Watch {
    fn start(regions: &Regions) -> Self {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let region = |stack: &Stack| {
            let (name, kafka) = (stack.region().unwrap(), stack.bootstrap_servers());
            format!("{name},kafka={kafka},restarts={}", regions.mirror().restarts_file().display())
        };
        let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_relayctl"))
            .args(["mirror", "watch", "--listen", &address, "--interval", "500ms"])
            .args(["--region", &region(regions.us_east()), "--region", &region(regions.eu_west())])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { _process: process, url: format!("http://{address}/metrics") }
    }

    /// Waits until a metric of the direction from us-east to eu-west has such a value.
    async fn until(&self, metric: &str, expected: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = match reqwest::get(&self.url).await {
                Ok(answer) => answer.text().await.unwrap(),
                Err(error) => error.to_string(),
            };
            let found = text.lines().find(|line| {
                line.starts_with(&format!("{metric}{{")) && line.contains(r#"source="us-east",target="eu-west""#)
            });
            if found.is_some_and(|line| expected(line.rsplit(' ').next().unwrap())) {
                return;
            }
            assert!(Instant::now() < deadline, "{metric}: {text}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn seconds(value: &str) -> f64 {
    value.parse().unwrap()
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
    let watch = Watch::start(&regions);
    for (metric, expected) in [("up", "1"), ("task_running", "1"), ("lag_records", "0"), ("lag_seconds", "0")] {
        watch.until(&format!("coderelay_mirror_{metric}"), |value| value == expected).await;
    }
    watch.until("coderelay_mirror_supervisor_restarts_total", |value| value == "0").await;
    watch.until("coderelay_mirror_canary_age_seconds", |value| seconds(value) < 15.0).await;
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
    assert_eq!(
        read(east, "eu-west.code.packets.v1"),
        [],
        "there before its processor starts, lest its members learn of it one by one"
    );

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

    regions.mirror().process().stop(GRACE).await.unwrap();
    coderelay_mirrormaker::restarts::write(regions.mirror().restarts_file(), 3).unwrap();
    write(east, "third", 10).await;
    watch.until("coderelay_mirror_lag_records", |value| value == "10").await;
    watch.until("coderelay_mirror_lag_seconds", |value| seconds(value) > 2.0).await;
    watch.until("coderelay_mirror_supervisor_restarts_total", |value| value == "3").await;
    regions.us_east().kill().await.unwrap();
    watch.until("coderelay_mirror_up", |value| value == "0").await;
    watch.until("coderelay_mirror_canary_age_seconds", |value| seconds(value) > 5.0).await;
}
