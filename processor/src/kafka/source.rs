//! A member of the consumer group, on its worker's own thread.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coderelay_runtime::kafka::{self, Statistics, context};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message};
use rdkafka::statistics::Partition;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::subscription::{Subscription, topics};
use super::{Identity, PATIENCE, REQUEST_TIMEOUT, default};
use crate::metrics::Metrics;
use crate::ports::{Fault, Polled, Source};
use crate::record::{Headers, Record, TopicPartition};

/// Errors after which librdkafka can be left with partitions that are assigned and never fetched (librdkafka#5586), or that no waiting
/// mends: the member is replaced, and the log says why.
const RESTARTS: [RDKafkaErrorCode; 6] = [
    RDKafkaErrorCode::NotCoordinator,
    RDKafkaErrorCode::CoordinatorNotAvailable,
    RDKafkaErrorCode::UnstableOffsetCommit,
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::InvalidSessionTimeout,
];

/// Between two requests for a new assignment: each stops the whole group for a moment, and a member that subscribes to other topics than
/// the rest will not get what it asks for.
const ASK_PAUSE: Duration = Duration::from_secs(60);

/// A [`Source`] over librdkafka's consumer.
///
/// The assignor is eager `range`: partition p of every source topic lands on the same member, whose memory then sees both copies of a
/// packet that arrives through two regions. Cooperative assignors would fence valid owners out of their transactions.
pub struct KafkaSource {
    consumer: BaseConsumer<Context>,
    /// One name per topic, shared by all its records.
    topics: HashMap<String, Arc<str>>,
    ledger: String,
    subscription: Subscription,
    /// While it is subscribed to less, so that the group makes a new assignment.
    narrowed: bool,
    /// When it last asked for one.
    asked: Option<Instant>,
    paused: bool,
    stop: CancellationToken,
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
            // By heartbeats members learn that another has joined: seconds between them would be seconds of every start.
            .set("heartbeat.interval.ms", (identity.session_timeout.as_millis() / 10).clamp(200, 500).to_string())
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
        let subscription = Subscription::new(identity.sources.clone(), &identity.topics.packets);
        subscribe(&consumer, subscription.sources())?;
        Ok(Self {
            consumer,
            topics: HashMap::new(),
            ledger: identity.topics.ledger.clone(),
            subscription,
            narrowed: false,
            asked: None,
            paused: false,
            stop: identity.stop.clone(),
        })
    }

    /// Most consumer errors pass by themselves; librdkafka reports them for information.
    fn judge(&self, error: &KafkaError) -> Result<(), Fault> {
        let Some((code, reason)) = self.consumer.client().fatal_error() else {
            if error.rdkafka_error_code().is_some_and(|code| RESTARTS.contains(&code)) {
                return Err(Fault::restart("consuming", error));
            }
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

    fn next_event(&mut self) -> Result<Option<Polled>, Fault> {
        let event = self.consumer.context().next_event();
        if let Some(Polled::Assigned(assigned)) = &event {
            let existing = self.partition_counts()?;
            self.check_partition_counts(assigned, &existing)?;
            self.complete(assigned, &existing)?;
            self.apply_pause()?;
        }
        Ok(event)
    }

    /// How many partitions each topic has.
    fn partition_counts(&self) -> Result<BTreeMap<String, usize>, Fault> {
        let metadata = self.consumer.fetch_metadata(None, REQUEST_TIMEOUT);
        let metadata = metadata.map_err(|error| Fault::restart("asking for partition counts", error))?;
        Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
    }

    /// Partition p of every topic holds the same repositories, or a packet's copies would not meet.
    fn check_partition_counts(
        &self,
        assigned: &[TopicPartition],
        existing: &BTreeMap<String, usize>,
    ) -> Result<(), Fault> {
        let count = |topic: &str| existing.get(topic).copied().unwrap_or(0);
        let expected = count(&self.ledger);
        for topic in topics(assigned) {
            let found = count(topic);
            if found != expected {
                return Err(Fault::Restart(format!(
                    "{topic} has {found} partitions and {} has {expected}: copies of a packet would not meet. Nothing is processed \
                     until they agree: leave the topic out of source.topics, or delete it and make it anew with {expected} \
                     (a mirrored one has as many as its source: move that region's producers to topics with {expected} first)",
                    self.ledger
                )));
            }
        }
        Ok(())
    }

    /// Has the group make a new assignment if the present one is older than a topic. A static member that comes back is given its former
    /// partitions, whatever it subscribes to by now (KIP-345): a topic that appeared while it was away would be nobody's, and as the client
    /// has known it from the start, it would not notice. Only a subscription that changes while it is a member makes the broker think again.
    fn complete(&mut self, assigned: &[TopicPartition], existing: &BTreeMap<String, usize>) -> Result<(), Fault> {
        if self.narrowed {
            self.narrowed = false;
            return subscribe(&self.consumer, self.subscription.sources());
        }
        let Some(topic) = self.subscription.overlooked(assigned, existing) else { return Ok(()) };
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_PAUSE) {
            return Ok(());
        }
        info!(topic, "it is nobody's yet: asking the group for a new assignment");
        (self.narrowed, self.asked) = (true, Some(Instant::now()));
        subscribe(&self.consumer, topics(assigned))
    }

    /// Pauses or resumes the whole assignment but for what is [withheld](Subscription::withheld). librdkafka remembers the flag of a
    /// partition that is revoked and assigned again later (librdkafka#1849), so it is set anew at each assignment.
    fn apply_pause(&self) -> Result<(), Fault> {
        let all = self.consumer.assignment().map_err(|error| Fault::restart("reading the assignment", error))?;
        let (mut read, mut held) = (TopicPartitionList::new(), TopicPartitionList::new());
        let assigned = owned(&all);
        let withheld = self.subscription.withheld(&assigned);
        for source in &assigned {
            let list = if self.paused || withheld.contains(source) { &mut held } else { &mut read };
            list.add_partition(&source.topic, source.partition);
        }
        if !withheld.is_empty() {
            // For a moment where a topic is new; for good where the region's own topic does not exist.
            let (partitions, own) = (withheld.len(), self.subscription.own());
            warn!(
                partitions,
                own, "mirrored partitions are not read while this worker has not the same of the region's own topic"
            );
        }
        let applied = self.consumer.resume(&read).and_then(|()| self.consumer.pause(&held));
        applied.map_err(|error| Fault::restart("pausing or resuming", error))
    }
}

fn subscribe<'a>(consumer: &BaseConsumer<Context>, topics: impl IntoIterator<Item = &'a str>) -> Result<(), Fault> {
    let topics: Vec<&str> = topics.into_iter().collect();
    consumer.subscribe(&topics).map_err(|error| Fault::restart("subscribing", error))
}

impl Source for KafkaSource {
    type Membership = Arc<ConsumerGroupMetadata>;

    fn poll(&mut self, timeout: Duration) -> Result<Polled, Fault> {
        if let Some(event) = self.next_event()? {
            return Ok(event);
        }
        // The client counts in whole milliseconds and spins through a fraction.
        let timeout = Duration::from_millis(timeout.as_millis() as u64 + u64::from(!timeout.is_zero()));
        // `poll` returns nothing after it has served a rebalance, so an event never overtakes a record.
        match self.consumer.poll(timeout) {
            None if self.consumer.context().clients.is_stranded() => {
                Err(Fault::Restart("the consumer knows no broker any more, and looks for none".into()))
            }
            None => Ok(self.next_event()?.unwrap_or(Polled::Nothing)),
            Some(Err(error)) => self.judge(&error).map(|()| Polled::Nothing),
            Some(Ok(message)) => Ok(Polled::Record(record(&mut self.topics, &message))),
        }
    }

    fn membership(&mut self) -> Option<Arc<ConsumerGroupMetadata>> {
        // Metadata first: most expulsions between the two show as a lost assignment. Metadata of one that does not still names this
        // static member, and the broker fences it.
        let metadata = self.consumer.group_metadata();
        if self.consumer.assignment_lost() { None } else { metadata.map(Arc::new) }
    }

    fn stable_offsets(&mut self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Fault> {
        // A read_committed client asks the broker for stable offsets (KIP-447): it gets no answer while a commit is pending.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut wanted = TopicPartitionList::with_capacity(partitions.len());
            for TopicPartition { topic, partition } in partitions {
                wanted.add_partition(topic, *partition);
            }
            let error = match self.consumer.committed_offsets(wanted, REQUEST_TIMEOUT) {
                Ok(offsets) => match offsets.elements().iter().find_map(|element| element.error().err()) {
                    None => return Ok(committed(&offsets)),
                    Some(error) => error,
                },
                Err(error) => error,
            };
            if Instant::now() >= deadline || self.stop.is_cancelled() {
                return Err(Fault::restart("fetching the committed offsets", error));
            }
            debug!(%error, "the committed offsets are not stable yet");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.paused = true;
        self.apply_pause()
    }

    fn resume(&mut self) -> Result<(), Fault> {
        self.paused = false;
        self.apply_pause()
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
    Record {
        source: TopicPartition { topic, partition: message.partition() },
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().filter(|timestamp| *timestamp >= 0),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: message.headers().map(headers).unwrap_or_default(),
    }
}

/// Bytes of a header, about: a few of those that ingest writes are longer, most are shorter.
const HEADER_SIZE: usize = 48;

/// Copies headers out of librdkafka's buffers.
pub(super) fn headers(borrowed: &BorrowedHeaders) -> Headers {
    let mut headers = Headers::with_capacity(borrowed.count() * HEADER_SIZE);
    for header in kafka::headers(borrowed) {
        match header {
            Some(header) => headers.push(header.key, header.value),
            None => headers.mark_unreadable(),
        }
    }
    headers
}

fn committed(offsets: &TopicPartitionList) -> BTreeMap<TopicPartition, i64> {
    let at = |offset| match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    let elements = offsets.elements();
    elements.iter().filter_map(|e| Some((TopicPartition::new(e.topic(), e.partition()), at(e.offset())?))).collect()
}

/// Records between the next one to be polled and the end that a `read_committed` reader sees. librdkafka's own `consumer_lag` counts from
/// offsets that this consumer committed, and it commits none: the transaction does.
fn waiting(partition: &Partition) -> u64 {
    let end = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
    let known = [partition.app_offset, partition.committed_offset, partition.lo_offset];
    let next = known.into_iter().find(|offset| *offset >= 0).unwrap_or(0);
    (end - next).max(0) as u64
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
            let ours = statistics.partitions.values().filter(|partition| partition.fetch_state == "active");
            (topic.clone(), ours.map(waiting).sum())
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
