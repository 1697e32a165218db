//! Kafka's part: produce, consume, and copy from topic to topic with and without transactions.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics;
use futures::future::try_join_all;
use ingest::config::IngestConfig;
use ingest::producer::RequestHeaders;
use processor::config::{BatchConfig, GroupConfig};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Message};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::Target;
use super::pool::Pool;
use super::span::Work;

/// Bound of each question to the broker.
const PATIENCE: Duration = Duration::from_secs(30);

/// A producer's, as each record carries one.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// How long is waited between two looks at what is still to be delivered. `poll` would spin: it counts in whole milliseconds.
const DELIVERY_WAIT: Duration = Duration::from_micros(200);

/// The cluster, with a topic to read and one to copy to.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    bootstrap_servers: String,
    partitions: i32,
    packets: String,
    copies: String,
}

/// The services' settings that the entries take over, for the summary.
pub(super) fn configuration() -> serde_json::Value {
    let (batch, group, ingest) = (BatchConfig::default(), GroupConfig::default(), IngestConfig::default());
    serde_json::json!({
        "transaction_records": batch.max_records,
        "transaction_workers": group.workers,
        "producer_linger_ms": ingest.producer.linger.as_millis(),
    })
}

impl Cluster {
    /// Creates the topics.
    pub(super) async fn create(target: &Target) -> Result<Self> {
        let suffix = std::process::id();
        let cluster = Self {
            bootstrap_servers: target.bootstrap_servers.clone(),
            partitions: target.partitions,
            packets: format!("{}-limits-{suffix}", topics::PACKETS),
            copies: format!("{}-limits-{suffix}", topics::DEDUPED),
        };
        // What an interrupted process of the same number left.
        cluster.remove().await;
        let replicas = target.replicas as i32;
        let topics = [&cluster.packets, &cluster.copies]
            .map(|name| NewTopic::new(name, target.partitions, TopicReplication::Fixed(replicas)));
        for result in cluster.admin()?.create_topics(&topics, &options()).await? {
            result.map_err(|(topic, code)| anyhow!("{topic}: {code}"))?;
        }
        let waiting = cluster.clone();
        spawn_blocking(move || waiting.await_leaders()).await??;
        Ok(cluster)
    }

    /// Deletes the topics. What cannot be deleted is left to the operator; its name says what it is.
    pub(super) async fn remove(&self) {
        if let Ok(admin) = self.admin() {
            let _ = admin.delete_topics(&[&self.packets, &self.copies], &options()).await;
        }
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// A broker learns of a created topic a moment later.
    fn await_leaders(&self) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        for topic in [&self.packets, &self.copies] {
            loop {
                let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE)?;
                let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
                let led = partitions.filter(|partition| partition.leader() >= 0).count();
                if led == self.partitions as usize {
                    break;
                }
                ensure!(Instant::now() < deadline, "the partitions of {topic} have no leader");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers).set("client.id", "coderelay-limits");
        config
    }

    // ---- produce ----------------------------------------------------------------------------------------------------------

    /// Produces the records that ingest makes of the packets, headers and all, without end and with its settings: its queue is kept full.
    pub(super) async fn produce(&self, pool: &Pool, work: Work) -> Result<()> {
        let mut config = IngestConfig::default();
        config.kafka.bootstrap_servers.clone_from(&self.bootstrap_servers);
        let settings = ingest::producer::settings(&config);
        let topic = self.packets.clone();
        let shared = RequestHeaders::new(&config.region, TRACEPARENT, None);
        let record = |(packet, value): (&CodePacket, &Bytes)| {
            let id = PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata);
            (packet.repo_id.clone(), value.clone(), shared.with_id(&id))
        };
        let records: Vec<_> = pool.packets.iter().zip(&pool.values).map(record).collect();
        let thread = spawn_blocking(move || {
            let deliveries = Deliveries { work: Some(work.clone()), failure: Mutex::default() };
            let producer = ThreadedProducer::<Deliveries>::from_config_and_context(&settings, deliveries)?;
            for (key, value, headers) in records.iter().cycle() {
                let mut record = BaseRecord::to(&topic).key(key.as_bytes()).payload(value.as_ref());
                record.headers = Some(headers.clone());
                while let Err((error, refused)) = producer.send(record) {
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                        return Err(error.into());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                    record = refused;
                }
                if !work.goes_on() {
                    break;
                }
            }
            producer.flush(PATIENCE)?;
            producer.context().check()
        });
        thread.await?
    }

    // ---- consume ----------------------------------------------------------------------------------------------------------

    /// Reads the topic with one consumer, again and again.
    pub(super) async fn consume(&self, work: Work) -> Result<()> {
        let cluster = self.clone();
        let thread = spawn_blocking(move || {
            let reader = cluster.reader(0, 1)?;
            while work.goes_on() {
                if reader.poll(Duration::from_millis(100))?.is_some() {
                    work.add(1);
                }
            }
            Ok(())
        });
        thread.await?
    }

    // ---- consume, copy, commit --------------------------------------------------------------------------------------------

    /// Copies the topic with as many workers and as large batches as the processor has.
    pub(super) async fn copy(&self, transactional: bool, work: Work) -> Result<()> {
        let workers = GroupConfig::default().workers;
        let threads = (0..workers).map(|worker| {
            let (cluster, work) = (self.clone(), work.clone());
            let thread = spawn_blocking(move || cluster.copy_share(worker, workers, transactional, &work));
            async { thread.await? }
        });
        try_join_all(threads).await.map(drop)
    }

    /// One worker: batch after batch, each accounted for before the next.
    fn copy_share(&self, worker: usize, workers: usize, transactional: bool, work: &Work) -> Result<()> {
        let reader = self.reader(worker, workers)?;
        let producer = self.copier(worker, transactional)?;
        if transactional {
            producer.init_transactions(PATIENCE)?;
        }
        let records = BatchConfig::default().max_records;
        while work.goes_on() {
            let batch = reader.batch(records)?;
            if batch.is_empty() {
                continue;
            }
            if transactional {
                producer.begin_transaction()?;
            }
            batch.iter().try_for_each(|message| self.send_copy(&producer, message))?;
            let offsets = next_offsets(&batch)?;
            if transactional {
                let membership = reader.consumer.group_metadata().context("the consumer has no group")?;
                producer.send_offsets_to_transaction(&offsets, &membership, PATIENCE)?;
            }
            // Also before a commit: rust-rdkafka's flushes first, and waits for deliveries in slices of 100 ms.
            while producer.in_flight_count() > 0 {
                std::thread::sleep(DELIVERY_WAIT);
            }
            producer.poll(Duration::ZERO);
            producer.context().check()?;
            if transactional {
                producer.commit_transaction(PATIENCE)?;
            } else {
                reader.consumer.commit(&offsets, CommitMode::Sync)?;
            }
            work.add(batch.len() as u64);
        }
        Ok(())
    }

    fn send_copy(&self, producer: &BaseProducer<Deliveries>, message: &BorrowedMessage<'_>) -> Result<()> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.copies).partition(message.partition());
        (record.key, record.payload) = (message.key(), message.payload());
        record.headers = message.headers().map(BorrowedHeaders::detach);
        record.timestamp = message.timestamp().to_millis();
        while let Err((error, refused)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            std::thread::sleep(DELIVERY_WAIT);
            record = refused;
        }
        Ok(())
    }

    /// A producer as the processor's.
    fn copier(&self, worker: usize, transactional: bool) -> Result<BaseProducer<Deliveries>> {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("delivery.report.only.error", "true")
            .set("linger.ms", "5")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.kbytes", "131072");
        if transactional {
            config.set("transactional.id", format!("{}-{worker}", self.copies));
        }
        Ok(config.create_with_context(Deliveries::default())?)
    }

    /// A reader of every `workers`-th partition of the topic.
    fn reader(&self, worker: usize, workers: usize) -> Result<Reader> {
        let mut share = TopicPartitionList::new();
        for partition in (0..self.partitions).filter(|partition| *partition as usize % workers == worker) {
            share.add_partition_offset(&self.packets, partition, Offset::Beginning)?;
        }
        let mut config = self.client();
        config
            .set("group.id", &self.copies)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "32768")
            .set("fetch.wait.max.ms", "100");
        let reader = Reader { consumer: config.create()?, share, ended: Cell::new(0) };
        reader.consumer.assign(&reader.share)?;
        Ok(reader)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// A consumer that begins anew when it has read everything.
struct Reader {
    consumer: BaseConsumer,
    share: TopicPartitionList,
    /// Partitions whose end was reached.
    ended: Cell<usize>,
}

impl Reader {
    fn poll(&self, timeout: Duration) -> Result<Option<BorrowedMessage<'_>>> {
        match self.consumer.poll(timeout) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message)),
            Some(Err(KafkaError::PartitionEOF(_))) => {
                self.ended.set(self.ended.get() + 1);
                if self.ended.get() == self.share.count() {
                    self.ended.set(0);
                    self.consumer.assign(&self.share)?;
                }
                Ok(None)
            }
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// As many records as there are at once, at most `records`.
    fn batch(&self, records: usize) -> Result<Vec<BorrowedMessage<'_>>> {
        let mut batch = Vec::with_capacity(records);
        let mut timeout = Duration::from_millis(100);
        while batch.len() < records {
            match self.poll(timeout)? {
                Some(message) => batch.push(message),
                None => break,
            }
            timeout = Duration::from_millis(5);
        }
        Ok(batch)
    }
}

/// Per partition the offset after the batch's last record.
fn next_offsets(batch: &[BorrowedMessage<'_>]) -> Result<TopicPartitionList> {
    let next: BTreeMap<_, _> = batch.iter().map(|message| (message.partition(), message.offset() + 1)).collect();
    let mut offsets = TopicPartitionList::new();
    for (partition, offset) in next {
        offsets.add_partition_offset(batch[0].topic(), partition, Offset::Offset(offset))?;
    }
    Ok(offsets)
}

/// Counts what the brokers acknowledged, and keeps the first failure.
#[derive(Default)]
struct Deliveries {
    work: Option<Work>,
    failure: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match (result, &self.work) {
            (Ok(_), Some(work)) => work.add(1),
            (Ok(_), None) => {}
            (Err((error, _)), _) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| error.clone());
            }
        }
    }
}
