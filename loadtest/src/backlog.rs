//! How far a consumer group has got: its committed offsets against the ends of the topics it reads.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// Bound of each question to the broker.
const PATIENCE: Duration = Duration::from_secs(10);

/// A view of one group on some topics. It asks and never joins the group.
pub struct Backlog {
    consumer: BaseConsumer,
    partitions: TopicPartitionList,
    starts: Vec<i64>,
    end: u64,
}

impl std::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backlog").field("end", &self.end).finish_non_exhaustive()
    }
}

impl Backlog {
    /// Looks the topics up and notes where they end now: records that arrive later are not part of this backlog.
    ///
    /// # Errors
    /// When the broker does not answer or a topic does not exist.
    pub fn open(bootstrap_servers: &str, group: &str, topics: &[String]) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", group)
            // A read_committed client would wait for transactions under way before it answers.
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let (mut partitions, mut starts, mut end) = (TopicPartitionList::new(), Vec::new(), 0);
        for topic in topics {
            for partition in 0..partition_count(&consumer, topic)? {
                let (low, high) = consumer
                    .fetch_watermarks(topic, partition, PATIENCE)
                    .with_context(|| format!("cannot read the ends of {topic}/{partition}"))?;
                partitions.add_partition(topic, partition);
                starts.push(low);
                end += high.max(0) as u64;
            }
        }
        Ok(Self { consumer, partitions, starts, end })
    }

    /// Sum of the partitions' end offsets, as found by [`Backlog::open`].
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Sum of the offsets the group has committed; a partition without one counts from its first record.
    ///
    /// # Errors
    /// When the group's coordinator does not answer.
    pub fn committed(&self) -> Result<u64> {
        let answer = self
            .consumer
            .committed_offsets(self.partitions.clone(), PATIENCE)
            .context("cannot read the group's committed offsets")?;
        let offsets = answer.elements().into_iter().zip(&self.starts).map(|(partition, start)| {
            partition
                .error()
                .with_context(|| format!("no offset for {}/{}", partition.topic(), partition.partition()))?;
            Ok(match partition.offset() {
                Offset::Offset(offset) => offset.max(0) as u64,
                _ => *start as u64,
            })
        });
        offsets.sum()
    }
}

fn partition_count(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).context("cannot reach Kafka")?;
    let Some(found) = metadata.topics().first() else { bail!("topic {topic} does not exist") };
    ensure!(found.error().is_none() && !found.partitions().is_empty(), "topic {topic} does not exist");
    Ok(found.partitions().len() as i32)
}
