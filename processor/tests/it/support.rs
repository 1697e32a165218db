//! A deployment of one's own on the shared stack: topics, a keyspace, processors as real processes, and readers that see what users see.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "a test; each binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coderelay_devstack::{Launch, Probe, Process, Stack, free_port};
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::topics::{self, TopicNames};
use coderelay_schemas::{cql, headers, pb};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers as _, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use scylla::client::session::Session;
use tempfile::TempDir;

/// Partitions of every topic in these tests.
pub const PARTITIONS: i32 = 4;
/// How long a condition may take to come true on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One deployment.
pub struct World {
    stack: &'static Stack,
    pub topics: TopicNames,
    pub keyspace: String,
    group: String,
    dir: TempDir,
    session: Session,
}

/// A record as a reader got it.
#[derive(Clone, Debug)]
pub struct Read {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Read {
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(key, _)| key == name)?;
        Some(String::from_utf8_lossy(found.1.as_deref()?).into_owned())
    }

    pub fn packet(&self) -> pb::CodePacket {
        pb::CodePacket::decode(self.value.as_deref().unwrap()).unwrap()
    }
}

impl World {
    /// A fresh deployment on the stack that all tests of this process share.
    pub async fn new() -> Self {
        Self::on(coderelay_devstack::shared().await).await
    }

    /// A fresh deployment on `stack`.
    pub async fn on(stack: &'static Stack) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let topics = TopicNames::with_suffix(&format!(".t{number}"));
        let keyspace = format!("t{number}");
        stack.create_topics(&topics, PARTITIONS).await.unwrap();
        stack.create_keyspace(&keyspace).await.unwrap();
        let session = stack.cql_session().await.unwrap();
        Self { stack, topics, keyspace, group: format!("g{number}"), dir: TempDir::new().unwrap(), session }
    }

    pub fn stack(&self) -> &'static Stack {
        self.stack
    }

    /// What is appended to the contract's topic names here.
    pub fn suffix(&self) -> String {
        self.topics.packets.trim_start_matches(topics::PACKETS).to_owned()
    }

    /// A processor called `instance`, not started yet.
    pub fn processor(&self, instance: &str) -> ProcessorBuilder<'_> {
        let settings = vec![
            format!("kafka.bootstrap_servers={}", self.stack.bootstrap_servers()),
            format!("cql.contact_points={}", self.stack.cql_contact()),
            format!("cql.keyspace={}", self.keyspace),
            "cql.consistency=one".into(),
            format!("group.id={}", self.group),
            format!("group.instance={instance}"),
            "group.session_timeout=6s".into(),
            "group.transaction_timeout=5s".into(),
            format!("source.topics={}", self.topics.packets),
            format!("topics.deduped={}", self.topics.deduped),
            format!("topics.ledger={}", self.topics.ledger),
            format!("topics.dlq={}", self.topics.dlq),
            "telemetry.log_format=human".into(),
            "telemetry.log_filter=info,processor=debug".into(),
        ];
        ProcessorBuilder { world: self, instance: instance.into(), settings, failpoints: String::new() }
    }

    /// Writes records to the source topic and waits until they are acknowledged.
    pub fn produce(&self, records: &[Source]) {
        self.produce_to(&self.topics.packets, records);
    }

    /// The same, to another topic.
    pub fn produce_to(&self, topic: &str, records: &[Source]) {
        let mut config = self.client();
        config
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", "20000000")
            .set("compression.type", "zstd");
        let producer: BaseProducer<Delivered> = config.create_with_context(Delivered).unwrap();
        for source in records {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
            record.key = source.key.as_deref();
            record.payload = source.value.as_deref();
            record.timestamp = source.timestamp;
            if !source.headers.is_empty() {
                record.headers = Some(source.headers.iter().fold(OwnedHeaders::new(), |owned, (key, value)| {
                    owned.insert(Header { key, value: Some(value.as_bytes()) })
                }));
            }
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// All committed records of `topic`.
    pub fn committed(&self, topic: &str) -> Vec<Read> {
        self.read(topic, "read_committed")
    }

    /// All records of `topic`, aborted ones included.
    pub fn uncommitted(&self, topic: &str) -> Vec<Read> {
        self.read(topic, "read_uncommitted")
    }

    fn read(&self, topic: &str, isolation: &str) -> Vec<Read> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "reader")
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        let (mut records, mut ended, deadline) = (Vec::new(), BTreeSet::new(), Instant::now() + PATIENCE);
        while ended.len() < PARTITIONS as usize {
            assert!(Instant::now() < deadline, "{topic} cannot be read to its end");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(Read {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message
                        .headers()
                        .into_iter()
                        .flat_map(|headers| headers.iter())
                        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                        .collect(),
                }),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                _ => {}
            }
        }
        records
    }

    /// Every entry of the ledger, with the topic in which the packet was seen.
    pub fn ledger(&self) -> Vec<(String, Entry)> {
        let records = self.committed(&self.topics.ledger);
        records
            .iter()
            .flat_map(|record| {
                let topic = record.header(ledger::SOURCE_TOPIC).unwrap();
                let entries: Vec<_> = ledger::decode(record.value.as_deref().unwrap()).unwrap().collect();
                entries.into_iter().map(move |entry| (topic.clone(), entry))
            })
            .collect()
    }

    /// Packet ids in the store, with their write times. A probe's row may live yet. Connects anew: a session that has seen the store die waits before it tries again.
    pub async fn rows(&self) -> BTreeMap<Vec<u8>, i64> {
        let session = self.stack.cql_session().await.unwrap();
        let result =
            session.query_unpaged(cql::scan_ids(&self.keyspace), ()).await.unwrap().into_rows_result().unwrap();
        let rows = result.rows::<(String, scylla::value::CqlDate, Vec<u8>, i64)>().unwrap().map(Result::unwrap);
        let mut ids = BTreeMap::new();
        for (_, _, id, written) in rows.filter(|(repo_id, ..)| repo_id != cql::PROBE_REPO_ID) {
            assert!(ids.insert(id, written).is_none(), "one packet has two rows");
        }
        ids
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Records of the source topic that the group has not accounted for.
    pub async fn lag(&self) -> i64 {
        self.lag_of(&self.topics.packets).await
    }

    /// The same, of another topic.
    pub async fn lag_of(&self, topic: &str) -> i64 {
        let group: BaseConsumer = self.client().set("group.id", &self.group).create().unwrap();
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || lag(&group, &topic)).await.unwrap()
    }

    /// Waits until the group has accounted for everything in the source topic.
    pub async fn settled(&self) {
        eventually("every record is accounted for", async || self.lag().await == 0).await;
    }

    /// The topic in which what the region `from` has taken arrives in this deployment, with that many partitions.
    pub async fn mirror_of(&self, from: &str, partitions: i32) -> String {
        let packets = format!("{from}.{}", self.topics.packets);
        let names = TopicNames { packets: packets.clone(), ..self.topics.clone() };
        self.stack.create_topics(&names, partitions).await.unwrap();
        packets
    }

    /// Asserts that exactly the packets `expected` were stored, published and, for every topic, entered in the ledger, each once.
    pub async fn assert_exactly_once(&self, expected: &[PacketId]) {
        let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        expected.sort();
        let mut published: Vec<String> =
            self.committed(&self.topics.deduped).iter().map(|read| id_of(&read.packet()).to_string()).collect();
        published.sort();
        assert_eq!(diff(&expected, &published), "", "published");
        let mut stored: Vec<String> =
            self.rows().await.keys().map(|id| PacketId::from_slice(id).unwrap().to_string()).collect();
        stored.sort();
        assert_eq!(diff(&expected, &stored), "", "stored");
        let entries: Vec<_> = self.ledger().into_iter().map(|(topic, entry)| (entry.key, topic)).collect();
        let seen: BTreeSet<_> = entries.iter().collect();
        assert_eq!(seen.len(), entries.len(), "ledger entries");
        let ids: BTreeSet<_> = seen.iter().map(|(key, _)| key).collect();
        assert_eq!(ids.len(), expected.len(), "ids in the ledger");
    }

    pub fn client(&self) -> ClientConfig {
        self.stack.kafka_client()
    }

    /// Scrapes one value, summed over labels that contain `labels`.
    pub async fn metric(&self, processor: &Running, name: &str, labels: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", processor.admin)).await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| {
                line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']) && line.contains(labels)
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// A producer's context that lets no failed delivery pass.
struct Delivered;

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "{result:?}");
    }
}

/// What is in one sorted list more often than in the other.
fn diff(expected: &[String], found: &[String]) -> String {
    let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
    for id in expected {
        *counts.entry(id).or_default() += 1;
    }
    for id in found {
        *counts.entry(id).or_default() -= 1;
    }
    let wrong: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count != 0)
        .take(5)
        .map(|(id, count)| format!("{id}: {} too {}", count.abs(), if *count > 0 { "few" } else { "many" }))
        .collect();
    wrong.join("; ")
}

fn lag(group: &BaseConsumer, topic: &str) -> i64 {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition_range(topic, 0, PARTITIONS - 1);
    let Ok(committed) = group.committed_offsets(wanted, Duration::from_secs(10)) else { return i64::MAX };
    let mut lag = 0;
    for element in committed.elements() {
        let Ok((_, end)) = group.fetch_watermarks(topic, element.partition(), Duration::from_secs(10)) else {
            return i64::MAX;
        };
        let at = match element.offset() {
            Offset::Offset(offset) => offset,
            _ => 0,
        };
        lag += end - at;
    }
    lag
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "it did not come true in {PATIENCE:?} that {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A processor about to start.
pub struct ProcessorBuilder<'a> {
    world: &'a World,
    instance: String,
    settings: Vec<String>,
    failpoints: String,
}

impl ProcessorBuilder<'_> {
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.settings.push(format!("{key}={value}"));
        self
    }

    /// Arms failpoints, `name=action` separated by `;`.
    pub fn failpoints(mut self, failpoints: &str) -> Self {
        self.failpoints = failpoints.into();
        self
    }

    /// Starts it without waiting.
    pub fn start(self) -> Running {
        let port = free_port().unwrap();
        let admin = format!("http://127.0.0.1:{port}");
        let listen = format!("admin.listen=127.0.0.1:{port}");
        let args = self.settings.iter().chain([&listen]).flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
        let launch =
            Launch::new(format!("processor-{}", self.instance), env!("CARGO_BIN_EXE_processor"), self.world.dir.path())
                .args(args)
                .envs([("FAILPOINTS", self.failpoints)])
                .ready_when(Probe::Http { url: format!("{admin}/readyz") });
        Running { process: Process::launch(launch).unwrap(), admin }
    }

    /// Starts it and waits until it is ready.
    pub async fn ready(self) -> Running {
        let running = self.start();
        running.process.ready().await.unwrap();
        running
    }

    /// Starts it and waits until a failpoint has crashed it.
    pub async fn crashes(self) {
        let running = self.start();
        let died = tokio::time::timeout(PATIENCE, running.process.wait()).await;
        let status = died.unwrap_or_else(|_| panic!("no crash:\n{}", running.process.log_tail(50)));
        assert!(!status.success(), "{}", running.process.log_tail(50));
        assert!(running.process.log_tail(50).contains("failpoint"), "{}", running.process.log_tail(50));
    }
}

/// A processor that runs. When its test fails, it shows the end of its log.
pub struct Running {
    pub process: Process,
    pub admin: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}:\n{}", self.process.name(), self.process.log_tail(25));
        }
    }
}

impl Running {
    pub async fn stop(&self) {
        let status = self.process.terminate().await.unwrap();
        assert!(status.success(), "{status}:\n{}", self.process.log_tail(50));
    }
}

/// A record to be written to the source topic.
#[derive(Clone, Debug, Default)]
pub struct Source {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp: Option<i64>,
    pub headers: Vec<(&'static str, String)>,
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Packet number `n` of one of a few repositories, complete as ingest would have written it.
pub fn packet(n: u32) -> pb::CodePacket {
    let repo_id = format!("github.com/acme/repo-{}", n % 7);
    let content = Bytes::from(gzip(format!("fn number_{n}() {{}}").as_bytes()));
    let metadata = BTreeMap::from([("path".to_owned(), format!("src/{n}.rs"))]);
    let packet_id = PacketId::derive(&repo_id, &content, &metadata).to_bytes();
    let created_at = Some(SystemTime::now().into());
    pb::CodePacket { repo_id, content, metadata, packet_id, created_at }
}

pub fn id_of(packet: &pb::CodePacket) -> PacketId {
    PacketId::from_slice(&packet.packet_id).unwrap()
}

/// `packet` as ingest would write it.
pub fn by_ingest(packet: &pb::CodePacket) -> Source {
    Source {
        key: Some(packet.repo_id.clone().into_bytes()),
        value: Some(packet.encode_to_vec()),
        timestamp: Some(now_ms()),
        headers: vec![
            (headers::PACKET_ID, hex::encode(&packet.packet_id)),
            (headers::REGION, "us-east".into()),
            (headers::CONTENT_TYPE, headers::CONTENT_TYPE_PROTOBUF.into()),
            (headers::SCHEMA, headers::SCHEMA_CODE_PACKET.into()),
            (headers::CHECKED, headers::CHECKED_GZIP.into()),
        ],
    }
}

/// Packets `range` as ingest would write them, with their ids.
pub fn batch(range: std::ops::Range<u32>) -> (Vec<Source>, Vec<PacketId>) {
    let packets: Vec<_> = range.map(packet).collect();
    (packets.iter().map(by_ingest).collect(), packets.iter().map(id_of).collect())
}
