//! A Kafka for all tests of this binary, an `ingest` for each, and clients.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coderelay_devstack::{Launch, Process, Stack, free_port};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{
    CodePacket, Committed, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResult,
};
use coderelay_schemas::topics::TopicNames;
use flate2::Compression;
use flate2::write::GzEncoder;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorDetails, RpcStatusExt};

/// Patience with a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const PARTITIONS: i32 = 4;

/// A broker for all tests that do not harm it.
pub(crate) async fn kafka() -> &'static Stack {
    static KAFKA: OnceCell<Stack> = OnceCell::const_new();
    KAFKA.get_or_init(async || Stack::builder().start().await.unwrap()).await
}

/// Topics that no other test uses.
async fn fresh_topics(stack: &Stack) -> TopicNames {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let topics = TopicNames::with_suffix(&format!("-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    stack.create_topics(&topics, PARTITIONS).await.unwrap();
    topics
}

/// The `ingest` binary as a process of its own, with a topic of its own.
pub(crate) struct World {
    pub(crate) process: Process,
    pub(crate) topic: String,
    pub(crate) port: u16,
    pub(crate) admin: u16,
    bootstrap: String,
    _dir: tempfile::TempDir,
}

impl World {
    /// One with default settings on the shared broker, ready for work.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// One with these settings, as `key=value`.
    pub(crate) async fn with(settings: &[&str]) -> Self {
        Self::on(kafka().await, settings).await
    }

    /// One on a broker that the test may harm.
    pub(crate) async fn on(stack: &Stack, settings: &[&str]) -> Self {
        let world = Self::launch(stack, &fresh_topics(stack).await, settings);
        eventually("ingest is ready", async || world.ready().await == 200).await;
        world
    }

    /// One that may not become ready.
    pub(crate) fn launch(stack: &Stack, topics: &TopicNames, settings: &[&str]) -> Self {
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let mut set = vec![
            format!("grpc.listen=127.0.0.1:{port}"),
            format!("admin.listen=127.0.0.1:{admin}"),
            format!("kafka.bootstrap_servers={}", stack.bootstrap_servers()),
            format!("topics.packets={}", topics.packets),
            "region=test".to_owned(),
        ];
        set.extend(settings.iter().map(ToString::to_string));
        let dir = tempfile::tempdir().unwrap();
        let args = set.into_iter().flat_map(|setting| ["--set".to_owned(), setting]);
        let launch = Launch::new("ingest", env!("CARGO_BIN_EXE_ingest"), dir.path()).args(args);
        let process = Process::launch(launch).unwrap();
        let (topic, bootstrap) = (topics.packets.clone(), stack.bootstrap_servers());
        Self { process, topic, port, admin, bootstrap, _dir: dir }
    }

    pub(crate) async fn channel(&self) -> Channel {
        connect(self.port).await
    }

    pub(crate) async fn client(&self) -> IngestClient<Channel> {
        IngestClient::new(self.channel().await)
    }

    /// Publishes packets in one unary call.
    pub(crate) async fn publish(&self, packets: Vec<CodePacket>) -> Vec<PublishResult> {
        self.client().await.publish_batch(PublishBatchRequest { packets }).await.unwrap().into_inner().results
    }

    /// The same, with what the acknowledgement is to promise.
    pub(crate) async fn publish_ack(&self, ack: &str, packets: Vec<CodePacket>) -> Result<Vec<PublishResult>, Status> {
        let call = with_ack(ack, PublishBatchRequest { packets });
        Ok(self.client().await.publish_batch(call).await?.into_inner().results)
    }

    /// Publishes what need not be packets.
    pub(crate) async fn publish_raw(&self, packets: Vec<Vec<u8>>) -> Vec<PublishResult> {
        let mut client = tonic::client::Grpc::new(self.channel().await);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/coderelay.v1.Ingest/PublishBatch");
        let codec = ProstCodec::<RawBatch, PublishBatchResponse>::default();
        let request = tonic::Request::new(RawBatch { packets });
        client.unary(request, path, codec).await.unwrap().into_inner().results
    }

    /// Everything in the topic at this moment.
    pub(crate) async fn records(&self) -> Vec<OwnedMessage> {
        records(&self.bootstrap, &self.topic).await
    }

    /// How many records the topic has.
    pub(crate) async fn stored(&self) -> i64 {
        let (bootstrap, topic) = (self.bootstrap.clone(), self.topic.clone());
        let count = move || {
            let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
            let ends =
                (0..PARTITIONS).map(|partition| consumer.fetch_watermarks(&topic, partition, PATIENCE).unwrap().1);
            ends.sum()
        };
        tokio::task::spawn_blocking(count).await.unwrap()
    }

    /// Each check and its outcome.
    pub(crate) async fn checks(&self) -> String {
        let url = format!("http://127.0.0.1:{}/readyz?verbose", self.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    /// The status of `/readyz`, 0 if nobody answers yet.
    pub(crate) async fn ready(&self) -> u16 {
        assert!(self.process.is_running(), "{}", self.process.log_tail(20));
        let url = format!("http://127.0.0.1:{}/readyz", self.admin);
        reqwest::get(url).await.map_or(0, |response| response.status().as_u16())
    }

    /// One metric's value by name and, if there are any, labels; 0 if it is not there.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until nothing is on its way any more: what was taken is in Kafka, and the whole budget is back.
    pub(crate) async fn idle(&self) {
        eventually("the budget is back", async || {
            self.metric("coderelay_ingest_in_flight_packets").await == 0.0
                && self.metric("coderelay_ingest_in_flight_bytes").await == 0.0
        })
        .await;
    }

    /// The memory that the process has resident now, in MiB.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory the process has had resident so far, in MiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// One of the sizes in `/proc/PID/status`, in MiB.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }
}

/// `PublishBatchRequest` on the wire, with packets that are any bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawBatch {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) packets: Vec<Vec<u8>>,
}

/// A call with the metadata `x-ack`.
pub(crate) fn with_ack<T>(ack: &str, message: T) -> Request<T> {
    let mut call = Request::new(message);
    call.metadata_mut().insert("x-ack", ack.parse().unwrap());
    call
}

pub(crate) async fn connect(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap()
}

/// Everything in a topic at this moment.
pub(crate) async fn records(bootstrap: &str, topic: &str) -> Vec<OwnedMessage> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let read = move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", "test").create().unwrap();
        let mut ends = HashMap::new();
        let mut assignment = TopicPartitionList::new();
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        for partition in metadata.topics()[0].partitions().iter().map(rdkafka::metadata::MetadataPartition::id) {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, PATIENCE).unwrap();
            ends.insert(partition, high);
            if low < high {
                assignment.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
            }
        }
        let mut unfinished = assignment.count();
        consumer.assign(&assignment).unwrap();
        let mut records = Vec::new();
        while unfinished > 0 {
            let record = consumer.poll(PATIENCE).expect("a record that the watermarks promise").unwrap().detach();
            let end = ends[&record.partition()];
            if record.offset() + 1 == end {
                unfinished -= 1;
            }
            // Others may still be writing.
            if record.offset() < end {
                records.push(record);
            }
        }
        records
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// A record's headers.
pub(crate) fn headers(record: &OwnedMessage) -> HashMap<String, String> {
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
    record.headers().unwrap().iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
}

/// Which packet is stored where.
pub(crate) fn places(records: &[OwnedMessage]) -> HashMap<(i32, i64), PacketId> {
    let id = |record| headers(record)["packet-id"].parse().unwrap();
    records.iter().map(|record| ((record.partition(), record.offset()), id(record))).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A good packet. Another text is another packet.
pub(crate) fn packet(repo_id: &str, text: &str) -> CodePacket {
    CodePacket { repo_id: repo_id.into(), content: gzip(text.as_bytes()).into(), ..CodePacket::default() }
}

/// `count` good packets that nobody else has.
pub(crate) fn packets(prefix: &str, count: usize) -> Vec<CodePacket> {
    (0..count).map(|n| packet(&format!("acme/{}", n % 7), &format!("{prefix} {n}"))).collect()
}

pub(crate) fn request(seq: u64, packets: Vec<CodePacket>) -> PublishRequest {
    PublishRequest { seq, packets }
}

pub(crate) fn is_committed(result: &PublishResult) -> bool {
    matches!(result.outcome, Some(Outcome::Committed(_)))
}

/// Where a packet is stored.
pub(crate) fn committed(result: &PublishResult) -> &Committed {
    match &result.outcome {
        Some(Outcome::Committed(committed)) => committed,
        other => panic!("expected a commit, got {other:?}"),
    }
}

/// Code and details of a refused packet.
pub(crate) fn refusal(result: &PublishResult) -> (tonic::Code, ErrorDetails) {
    match &result.outcome {
        Some(Outcome::Error(status)) => (status.code.into(), status.get_error_details()),
        other => panic!("expected an error, got {other:?}"),
    }
}

pub(crate) fn reason(details: &ErrorDetails) -> &str {
    details.error_info().map_or("", |info| &info.reason)
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
