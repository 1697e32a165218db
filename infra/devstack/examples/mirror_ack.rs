//! How soon it can be known that a record is durable in the other region, by each of the ways there are, and what each costs:
//!
//! ```sh
//! cargo run -p coderelay-devstack --example mirror_ack -- 1000      # records a second
//! ```
//!
//! Two regions with `MirrorMaker` between them, one record of 1 KiB after the other, and for each the time from the producer's acknowledgement
//! until one of three topics tells of it: the offsets from which Connect resumes, `MirrorMaker`'s offset syncs, or the mirrored topic itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use coderelay_devstack::{Jit, Process, Regions, Stack};
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};

const WARM_UP: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(10);
const MEASURE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(10);

type Settings = &'static [(&'static str, &'static str)];

/// What differs from `mm2.properties`, by the topic that tells.
const VARIANTS: [(&str, Way, Settings); 6] = [
    ("Connect's offsets, flushed every 10 ms", Way::Offsets, &[("flush", "10"), ("poll", "50")]),
    ("Connect's offsets, flushed every 20 ms", Way::Offsets, &[("flush", "20"), ("poll", "50")]),
    ("Connect's offsets, flushed every 50 ms", Way::Offsets, &[("flush", "50"), ("poll", "50")]),
    ("Connect's offsets, flushed every second", Way::Offsets, &[("flush", "1000"), ("poll", "100")]),
    ("offset syncs, offset.lag.max = 0", Way::Syncs, &[("flush", "1000"), ("poll", "100"), ("lag", "0")]),
    ("the mirrored topic", Way::Mirrored, &[("flush", "1000"), ("poll", "100")]),
];

/// Which topic tells.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Offsets,
    Syncs,
    Mirrored,
}

/// When each record was acknowledged, until it is known to be mirrored; and how long that took.
#[derive(Debug, Default)]
struct Times {
    open: HashMap<i32, std::collections::BTreeMap<i64, Instant>>,
    took: Vec<Duration>,
}

impl Times {
    fn confirm(&mut self, partition: i32, offset: i64) {
        let Some(open) = self.open.get_mut(&partition) else { return };
        let later = open.split_off(&(offset + 1));
        let confirmed = std::mem::replace(open, later);
        self.took.extend(confirmed.into_values().map(|acknowledged| acknowledged.elapsed()));
    }

    fn percentile(&mut self, share: f64) -> f64 {
        self.took.sort_unstable();
        let index = (self.took.len() as f64 * share) as usize;
        self.took.get(index.min(self.took.len().saturating_sub(1))).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Times>>);

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Times) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl ClientContext for Shared {}

impl ProducerContext for Shared {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        if let Ok(record) = report {
            let (partition, offset) = (record.partition(), record.offset());
            self.change(|times| times.open.entry(partition).or_default().insert(offset, Instant::now()));
        }
    }
}

impl Way {
    fn topic(self, source: &str, target: &str) -> String {
        match self {
            Self::Offsets => format!("mm2-offsets.{source}.internal"),
            Self::Syncs => format!("mm2-offset-syncs.{target}.internal"),
            Self::Mirrored => format!("{source}.{PACKETS}"),
        }
    }

    /// What a record says: everything up to this offset of this partition of the source is mirrored.
    fn read(self, record: &BorrowedMessage) -> Option<(i32, i64)> {
        match self {
            Self::Offsets => {
                let (_, key): (String, serde_json::Value) = serde_json::from_slice(record.key()?).ok()?;
                let value: serde_json::Value = serde_json::from_slice(record.payload()?).ok()?;
                (key.get("topic")?.as_str()? == PACKETS).then_some(())?;
                Some((key.get("partition")?.as_i64()? as i32, value.get("offset")?.as_i64()?))
            }
            Self::Syncs => {
                // Key: topic (length, bytes) and partition; value: offset in the source, offset in the target.
                let (key, value) = (record.key()?, record.payload()?);
                let partition =
                    key.strip_prefix(&[0, PACKETS.len() as u8]).and_then(|key| key.strip_prefix(PACKETS.as_bytes()))?;
                Some((
                    i32::from_be_bytes(partition.try_into().ok()?),
                    i64::from_be_bytes(value.get(..8)?.try_into().ok()?),
                ))
            }
            // The mirror has never failed here, so the offsets of both topics are the same.
            Self::Mirrored => Some((record.partition(), record.offset())),
        }
    }
}

/// Follows a topic from its end on.
fn follow(
    region: &Stack,
    way: Way,
    topic: &str,
    times: Shared,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let consumer: BaseConsumer =
        region.kafka_client().set("group.id", "mirror-ack").set("enable.auto.commit", "false").create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut ends = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
        ends.add_partition_offset(
            topic,
            partition.id(),
            Offset::Offset(consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?.1),
        )?;
    }
    consumer.assign(&ends)?;
    Ok(std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100))
                && let Some((partition, offset)) = way.read(&record)
            {
                times.change(|times| times.confirm(partition, offset));
            }
        }
    }))
}

/// CPU seconds that a process has used.
fn cpu(process: &Process) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

/// Has the mirror run with other settings.
async fn reconfigure(regions: &Regions, settings: Settings) -> anyhow::Result<()> {
    let mirror = regions.mirror().process();
    let path = mirror.dir().join("mm2.properties");
    let given = std::fs::read_to_string(&path)?;
    let ours = ["offset.flush.interval.ms", "consumer.poll.timeout.ms", "offset.lag.max"];
    let mut lines: Vec<String> =
        given.lines().filter(|line| !ours.iter().any(|key| line.contains(key))).map(str::to_owned).collect();
    for (name, value) in settings {
        match *name {
            "flush" => lines
                .extend(["us-east", "eu-west"].map(|region| format!("{region}.offset.flush.interval.ms = {value}"))),
            "poll" => lines.push(format!("consumer.poll.timeout.ms = {value}")),
            _ => lines.push(format!("offset.lag.max = {value}")),
        }
    }
    std::fs::write(&path, lines.join("\n"))?;
    mirror.stop(Duration::from_secs(20)).await?;
    mirror.start()?;
    mirror.ready().await.context("the mirror")
}

/// Sends records at this rate, round robin over the partitions.
fn send(producer: &ThreadedProducer<Shared>, rate: u64, lasting: Duration) -> anyhow::Result<()> {
    let (started, payload) = (Instant::now(), vec![7_u8; 1024]);
    for number in 0.. {
        let due = Duration::from_nanos(number * 1_000_000_000 / rate);
        if due > lasting {
            break;
        }
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        let partition = (number % PARTITIONS as u64) as i32;
        let record = BaseRecord::<[u8], [u8]>::to(PACKETS).partition(partition).payload(&payload);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let rate: u64 = std::env::args().nth(1).map_or(Ok(1000), |rate| rate.parse())?;
    let regions = Regions::start(Stack::builder().jit(Jit::Full)).await?;
    let (source, target) = (regions.us_east(), regions.eu_west());
    println!("{rate}/s | confirmed | p50 ms | p99 ms | MirrorMaker CPU % | idle | source's broker | target's broker");
    for (name, way, settings) in VARIANTS {
        reconfigure(&regions, settings).await?;
        let (times, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        let producer: ThreadedProducer<Shared> = source
            .kafka_client()
            .set("enable.idempotence", "true")
            .set("linger.ms", "3")
            .create_with_context(times.clone())?;
        tokio::task::block_in_place(|| send(&producer, rate, WARM_UP))?;
        let idle = cpu(regions.mirror().process());
        tokio::time::sleep(IDLE).await;
        let idle = (cpu(regions.mirror().process()) - idle) / IDLE.as_secs_f64() * 100.0;
        let topic = way.topic("us-east", "eu-west");
        let follower =
            follow(if way == Way::Syncs { source } else { target }, way, &topic, times.clone(), Arc::clone(&stop))?;
        times.change(|times| *times = Times::default());
        let processes = [regions.mirror().process(), source.broker(0), target.broker(0)];
        let before = processes.map(cpu);
        tokio::task::block_in_place(|| send(&producer, rate, MEASURE))?;
        let share: Vec<f64> = std::iter::zip(processes, before)
            .map(|(process, before)| (cpu(process) - before) / MEASURE.as_secs_f64() * 100.0)
            .collect();
        producer.flush(PATIENCE)?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        stop.store(true, Ordering::Relaxed);
        let _joined = follower.join();
        let (p50, p99, confirmed) =
            times.change(|times| (times.percentile(0.5), times.percentile(0.99), times.took.len()));
        println!(
            "{name} | {confirmed} | {p50:.1} | {p99:.1} | {:.0} | {idle:.0} | {:.0} | {:.0}",
            share[0], share[1], share[2]
        );
    }
    Ok(())
}
