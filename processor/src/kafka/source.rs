//! A member of the consumer group, on its worker's own thread.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coderelay_runtime::kafka::{Statistics, context};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::{debug, info, warn};

use super::{Identity, REQUEST_TIMEOUT, default};
use crate::metrics::Metrics;
use crate::ports::{Fault, Polled, Source};
use crate::record::{Headers, Record, TopicPartition};

/// A [`Source`] over librdkafka's consumer.
///
/// The assignor is eager `range`: partition p of every source topic lands on the same member, whose memory then sees both copies of a
/// packet that arrives through two regions. Cooperative assignors would fence valid owners out of their transactions.
pub struct KafkaSource {
    consumer: BaseConsumer<Context>,
    /// One name per topic, shared by all its records.
    topics: HashMap<String, Arc<str>>,
}

impl KafkaSource {
    /// Joins the group as `identity.member`. Statistics go to `metrics` as those of worker `worker`.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn join(identity: &Identity, worker: usize, metrics: Arc<Metrics>) -> Result<Self, Fault> {
        let mut config = identity.client.clone();
        config
            .set("group.id", &identity.group)
            .set("group.instance.id", &identity.member)
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", identity.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (identity.session_timeout.as_millis() / 10).clamp(200, 3000).to_string())
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest");
        default(&mut config, "max.poll.interval.ms", "300000");
        // A mirrored topic may appear long after this consumer; the default would find it after five minutes.
        default(&mut config, "topic.metadata.refresh.interval.ms", "10000");
        // Memory per worker; the default of 64 MiB suits few processes that do nothing else.
        default(&mut config, "queued.max.messages.kbytes", "32768");
        default(&mut config, "fetch.wait.max.ms", "100");
        let clients = Statistics::new(format!("consumer-{worker}"));
        let context = Context { events: Mutex::default(), worker, metrics, clients };
        let consumer: BaseConsumer<Context> =
            config.create_with_context(context).map_err(|error| Fault::restart("creating the consumer", error))?;
        let sources: Vec<&str> = identity.sources.iter().map(String::as_str).collect();
        consumer.subscribe(&sources).map_err(|error| Fault::restart("subscribing", error))?;
        Ok(Self { consumer, topics: HashMap::new() })
    }

    /// Most consumer errors pass by themselves; librdkafka reports them for information.
    fn judge(&self, error: &KafkaError) -> Result<(), Fault> {
        let Some((code, reason)) = self.consumer.client().fatal_error() else {
            debug!(%error, "consumer");
            return Ok(());
        };
        if code == RDKafkaErrorCode::FencedInstanceId {
            return Err(Fault::Fenced(format!(
                "another process has joined the group under this worker's group.instance.id: {reason}. \
                 Every running processor needs an `instance` of its own"
            )));
        }
        Err(Fault::restart("consuming", reason))
    }

    fn assignment(&self) -> Result<TopicPartitionList, Fault> {
        self.consumer.assignment().map_err(|error| Fault::restart("reading the assignment", error))
    }
}

impl Source for KafkaSource {
    type Membership = ConsumerGroupMetadata;

    fn poll(&mut self, timeout: Duration) -> Result<Polled, Fault> {
        if let Some(event) = self.consumer.context().next_event() {
            return Ok(event);
        }
        // `poll` returns nothing after it has served a rebalance, so an event never overtakes a record.
        match self.consumer.poll(timeout) {
            None => Ok(self.consumer.context().next_event().unwrap_or(Polled::Nothing)),
            Some(Err(error)) => self.judge(&error).map(|()| Polled::Nothing),
            Some(Ok(message)) => Ok(Polled::Record(record(&mut self.topics, &message))),
        }
    }

    fn membership(&mut self) -> Option<ConsumerGroupMetadata> {
        // Metadata first: an expulsion between the two shows as a lost assignment.
        let metadata = self.consumer.group_metadata();
        if self.consumer.assignment_lost() { None } else { metadata }
    }

    fn await_stable_offsets(&mut self, partitions: &[TopicPartition]) -> Result<(), Fault> {
        // A read_committed client asks the broker for stable offsets (KIP-447): it gets no answer while a commit is pending.
        let deadline = Instant::now() + REQUEST_TIMEOUT * 6;
        loop {
            let mut wanted = TopicPartitionList::with_capacity(partitions.len());
            for TopicPartition { topic, partition } in partitions {
                wanted.add_partition(topic, *partition);
            }
            let error = match self.consumer.committed_offsets(wanted, REQUEST_TIMEOUT) {
                Ok(offsets) => match offsets.elements().iter().find_map(|element| element.error().err()) {
                    None => return Ok(()),
                    Some(error) => error,
                },
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(Fault::restart("fetching the committed offsets", error));
            }
            debug!(%error, "the committed offsets are not stable yet");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.consumer.pause(&self.assignment()?).map_err(|error| Fault::restart("pausing", error))
    }

    fn resume(&mut self) -> Result<(), Fault> {
        self.consumer.resume(&self.assignment()?).map_err(|error| Fault::restart("resuming", error))
    }

    fn backlog(&self) -> u64 {
        self.consumer.context().metrics.backlog(self.consumer.context().worker)
    }
}

/// Copies a message out of librdkafka's buffers.
fn record(topics: &mut HashMap<String, Arc<str>>, message: &BorrowedMessage<'_>) -> Record {
    let topic = match topics.get(message.topic()) {
        Some(topic) => Arc::clone(topic),
        None => Arc::clone(topics.entry(message.topic().to_owned()).or_insert_with(|| message.topic().into())),
    };
    let mut headers = Headers::default();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        headers.push(header.key, header.value);
    }
    Record {
        source: TopicPartition { topic, partition: message.partition() },
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().filter(|timestamp| *timestamp >= 0),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers,
    }
}

/// Collects what librdkafka calls back with, for the poll that triggered it.
struct Context {
    events: Mutex<VecDeque<Polled>>,
    worker: usize,
    metrics: Arc<Metrics>,
    clients: Statistics,
}

impl Context {
    fn next_event(&self) -> Option<Polled> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn push_event(&self, event: Polled) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: rdkafka::Statistics) {
        let waiting = statistics.topics.iter().map(|(topic, statistics)| {
            let lag = |partition: &rdkafka::statistics::Partition| {
                if partition.fetch_state == "active" { partition.consumer_lag.max(0) as u64 } else { 0 }
            };
            (topic.clone(), statistics.partitions.values().map(lag).sum())
        });
        self.metrics.waiting(self.worker, waiting.collect());
        self.clients.record(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::log_error(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                let partitions = owned(partitions);
                info!(worker = self.worker, count = partitions.len(), "partitions assigned");
                self.metrics.assigned(self.worker, partitions.len());
                self.push_event(Polled::Assigned(partitions));
            }
            Rebalance::Revoke(partitions) => {
                let partitions = owned(partitions);
                info!(worker = self.worker, count = partitions.len(), "partitions revoked");
                self.metrics.revoked(self.worker);
                self.push_event(Polled::Revoked(partitions));
            }
            Rebalance::Error(error) => warn!(worker = self.worker, %error, "rebalance"),
        }
    }
}

fn owned(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    partitions.elements().iter().map(|element| TopicPartition::new(element.topic(), element.partition())).collect()
}
