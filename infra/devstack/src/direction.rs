//! One direction of the mirror, and what the two regions' brokers tell of it.
//!
//! `MirrorMaker` is not asked itself: its REST port answers, and its log says "started", before its tasks run and after they have failed.
//! What it does is in Kafka: the states of its tasks in its status topic, and its heartbeats. It writes a heartbeat to each region
//! every second and mirrors them like any topic (KIP-382), so a heartbeat that has arrived has gone the way of a packet: read in one
//! region, written in the other. They serve as the canary, because one of our own would need a topic beyond the contract, or be a packet
//! that nobody sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use coderelay_mirrormaker::topic::{self, HEARTBEATS};
use coderelay_mirrormaker::{TaskState, TaskStatus};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::readiness::quiet_client;

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far before a topic's end its last record is looked for: in a topic written in transactions, markers take offsets too.
const TAIL: i64 = 10;

/// From one region to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// The region whose topics are mirrored.
    pub source: Cluster,
    /// The region that gets the copies.
    pub target: Cluster,
}

/// A region's brokers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The region, for example `us-east`.
    pub name: String,
    /// `host:port` of its brokers, comma-separated.
    pub bootstrap_servers: String,
}

/// What is known of a direction at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// The tasks by connector and number, for example `MirrorSourceConnector-0`.
    pub tasks: BTreeMap<String, Task>,
    /// When the youngest heartbeat in the source was written.
    pub sent: Option<SystemTime>,
    /// When the youngest of those that have arrived in the target was written in the source.
    pub arrived: Option<SystemTime>,
    /// When the youngest heartbeat was written to the target. The worker of this direction does that, not the other's.
    pub pulse: Option<SystemTime>,
}

/// What a task said of itself last. One whose process was killed says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its state.
    pub state: TaskState,
    /// When it said so, by its own clock.
    pub since: SystemTime,
    /// The first line of the exception it failed with.
    pub error: Option<String>,
}

impl Direction {
    /// Reads what both regions tell. Blocking; some tens of milliseconds when they answer.
    ///
    /// # Errors
    /// If one of the regions does not answer within a few seconds. Topics that do not exist yet are no error.
    pub(crate) fn observe(&self) -> Result<Observation, String> {
        let (source, target) = (Reader::connect(&self.source)?, Reader::connect(&self.target)?);
        let mut tasks = BTreeMap::new();
        target.read(&topic::status(&self.source.name), Offset::Beginning, |record| {
            note(&mut tasks, record);
        })?;
        let arrived = target.last_written(&topic::mirrored(&self.source.name, HEARTBEATS))?;
        let (sent, pulse) = (source.last_written(HEARTBEATS)?, target.last_written(HEARTBEATS)?);
        Ok(Observation { tasks, sent, arrived, pulse })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}->{}", self.source.name, self.target.name)
    }
}

impl Observation {
    /// Tasks that have failed since `start`, each with its error: what an earlier process left behind is no failure of this one.
    pub fn failed_since(&self, start: SystemTime) -> impl Iterator<Item = (&str, &str)> {
        let failed = move |task: &&Task| task.state == TaskState::Failed && task.since >= start;
        self.tasks.iter().filter(move |(_, task)| failed(task)).map(|(name, task)| {
            let error = task.error.as_deref().unwrap_or("no reason given");
            (name.as_str(), error)
        })
    }

    /// Whether every task runs, and a heartbeat that was written after `asked` has arrived.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn moves_since(&self, asked: SystemTime) -> Result<(), String> {
        if !self.tasks.keys().any(|name| name.starts_with("MirrorSourceConnector-")) {
            return Err("has no task that mirrors".into());
        }
        if let Some((name, task)) = self.tasks.iter().find(|(_, task)| task.state != TaskState::Running) {
            return Err(format!("task {name} is not running: {:?}", task.state));
        }
        match self.arrived {
            Some(arrived) if arrived >= asked => Ok(()),
            _ => Err("no fresh heartbeat has arrived".into()),
        }
    }
}

/// Adds what a record of the status topic says, if it is about a task. Without a value it says that there is no such task any more.
fn note(tasks: &mut BTreeMap<String, Task>, record: &BorrowedMessage) {
    let Some((name, status)) = TaskStatus::parse(record.key(), record.payload()) else { return };
    match (status, written(record)) {
        (Some(status), Some(since)) => {
            let error = status.error().map(str::to_owned);
            tasks.insert(name.to_owned(), Task { state: status.state, since, error });
        }
        _ => drop(tasks.remove(name)),
    }
}

fn written(record: &BorrowedMessage) -> Option<SystemTime> {
    let millis = u64::try_from(record.timestamp().to_millis()?).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
}

/// Reads whole topics of one region up to their ends.
struct Reader {
    consumer: BaseConsumer,
    cluster: String,
    /// Partitions by topic.
    topics: BTreeMap<String, BTreeSet<i32>>,
}

impl Reader {
    fn connect(cluster: &Cluster) -> Result<Self, String> {
        let said = |error: KafkaError| format!("{} does not answer: {error}", cluster.name);
        let mut config = quiet_client(&cluster.bootstrap_servers, None);
        config
            .set("group.id", "devstack.mirror")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().map_err(said)?;
        let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(said)?;
        let partitions = |topic: &rdkafka::metadata::MetadataTopic| {
            let ids = topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
            (topic.name().to_owned(), ids)
        };
        let topics = metadata.topics().iter().map(partitions).collect();
        Ok(Self { consumer, cluster: cluster.name.clone(), topics })
    }

    /// When the last record of a topic was written where it was written first.
    fn last_written(&self, topic: &str) -> Result<Option<SystemTime>, String> {
        let mut last = None;
        self.read(topic, Offset::OffsetTail(TAIL), |record| last = last.max(written(record)))?;
        Ok(last)
    }

    /// Calls `each` with every record from `offset` to the end; with none if there is no such topic.
    fn read(&self, topic: &str, offset: Offset, mut each: impl FnMut(&BorrowedMessage)) -> Result<(), String> {
        let mut unread = self.topics.get(topic).cloned().unwrap_or_default();
        let said = |error: KafkaError| format!("{} does not let {topic} be read: {error}", self.cluster);
        let mut assignment = TopicPartitionList::new();
        for partition in &unread {
            assignment.add_partition_offset(topic, *partition, offset).map_err(said)?;
        }
        self.consumer.assign(&assignment).map_err(said)?;
        let deadline = Instant::now() + PATIENCE;
        while !unread.is_empty() {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(record)) => each(&record),
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
                // A topic that is just being made is known before it can be read; librdkafka asks again by itself.
                Some(Err(error)) if Instant::now() > deadline => return Err(said(error)),
                Some(Err(_)) => {}
                None => return Err(said(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))),
            }
        }
        Ok(())
    }
}
