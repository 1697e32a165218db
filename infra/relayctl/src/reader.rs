//! Reading a topic without a consumer group: from a position, up to an end known beforehand or for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};

use crate::connect::{Connection, REQUEST_TIMEOUT};
use crate::exit::Refusal;
use crate::position::{Position, millis};
use crate::progress::remark;

/// A bounded read that hears nothing for this long gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Offsets by partition.
pub(crate) type Offsets = BTreeMap<i32, i64>;

/// A `read_committed` reader of one topic.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    topic: String,
    partitions: Vec<i32>,
}

impl Reader {
    /// Connects and looks the topic up; blocks. [`Refusal::NotFound`] where there is no such topic.
    pub(crate) fn open(connection: &Connection, topic: &str) -> anyhow::Result<Self> {
        let consumer = connection.consumer("relayctl")?;
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
        let found = metadata.topics().iter().find(|candidate| candidate.name() == topic);
        match found.map(|found| found.error().map(RDKafkaErrorCode::from)) {
            Some(None) => {}
            None | Some(Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition)) => {
                bail!(Refusal::NotFound(format!("Kafka at {} has no topic {topic}", connection.kafka)));
            }
            Some(Some(code)) => bail!("{topic}: {code}"),
        }
        let partitions = found.map(MetadataTopic::partitions).unwrap_or_default();
        let partitions = partitions.iter().map(MetadataPartition::id).collect();
        Ok(Self { consumer, topic: topic.to_owned(), partitions })
    }

    /// The topic's name.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Hands every record there is now on to `visit`. Blocks.
    pub(crate) fn read_all(&self, mut visit: impl FnMut(&BorrowedMessage<'_>)) -> anyhow::Result<()> {
        let (from, ends) = (self.resolve(Position::Earliest)?, self.ends()?);
        self.read(&from, Some(&ends), |record| {
            visit(record);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Every partition's last stable offset.
    pub(crate) fn ends(&self) -> anyhow::Result<Offsets> {
        self.partitions.iter().map(|&partition| Ok((partition, self.bounds(partition)?.1))).collect()
    }

    /// The offset of `position` in every partition.
    pub(crate) fn resolve(&self, position: Position) -> anyhow::Result<Offsets> {
        if let Position::Time(time) = position {
            return self.at_time(millis(time));
        }
        let mut offsets = Offsets::new();
        for &partition in &self.partitions {
            let (low, end) = self.bounds(partition)?;
            let offset = match position {
                Position::Earliest => low,
                Position::Latest | Position::Time(_) => end,
                Position::Offset(offset) => offset.clamp(low, end),
                Position::Last(count) => (end - count).max(low),
            };
            offsets.insert(partition, offset);
        }
        Ok(offsets)
    }

    fn bounds(&self, partition: i32) -> anyhow::Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(&self.topic, partition, REQUEST_TIMEOUT)
            .with_context(|| format!("offsets of {}-{partition}", self.topic))
    }

    fn at_time(&self, millis: i64) -> anyhow::Result<Offsets> {
        let mut wanted = TopicPartitionList::new();
        for &partition in &self.partitions {
            wanted.add_partition_offset(&self.topic, partition, Offset::Offset(millis))?;
        }
        let found = self.consumer.offsets_for_times(wanted, REQUEST_TIMEOUT).context("offsets by time")?;
        let mut offsets = Offsets::new();
        for element in found.elements() {
            element.error()?;
            let offset = match element.offset() {
                Offset::Offset(offset) => offset,
                // Nothing that young: start at the end.
                _ => self.bounds(element.partition())?.1,
            };
            offsets.insert(element.partition(), offset);
        }
        Ok(offsets)
    }

    /// Hands every committed record from `from` on to `visit` until it breaks. With `until` the read ends before those
    /// offsets, which must have existed when it started; without, it goes on for ever. Blocks.
    pub(crate) fn read(
        &self,
        from: &Offsets,
        until: Option<&Offsets>,
        mut visit: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let end = |partition: i32| until.and_then(|ends| ends.get(&partition)).copied().unwrap_or(i64::MAX);
        let mut remaining = BTreeSet::new();
        let mut assignment = TopicPartitionList::new();
        for (&partition, &offset) in from.iter().filter(|&(&partition, &offset)| offset < end(partition)) {
            remaining.insert(partition);
            assignment.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        self.consumer.assign(&assignment)?;

        let mut heard = Instant::now();
        while !remaining.is_empty() {
            // None may be a timeout or an internal event that was handled: either way, ask again.
            let event = self.consumer.poll(Duration::from_millis(100));
            if event.is_some() {
                heard = Instant::now();
            } else if until.is_some() && heard.elapsed() > PATIENCE {
                bail!("{}: no answer from Kafka for {PATIENCE:?}, partitions {remaining:?} unread", self.topic);
            }
            match event {
                None => {}
                Some(Ok(message)) => {
                    use rdkafka::Message as _;
                    let (partition, next) = (message.partition(), message.offset() + 1);
                    if next <= end(partition) && visit(&message)?.is_break() {
                        break;
                    }
                    if next >= end(partition) {
                        remaining.remove(&partition);
                    }
                }
                // The last offsets before an end may be transaction markers, which are never delivered.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    remaining.retain(|&other| until.is_none() || other != partition);
                }
                Some(Err(error)) if passes(&error) => remark(&format!("{}: {error}; still trying", self.topic)),
                Some(Err(error)) => return Err(error).context(format!("reading {}", self.topic)),
            }
        }
        self.consumer.unassign()?;
        Ok(())
    }
}

/// Errors librdkafka recovers from by itself.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}
