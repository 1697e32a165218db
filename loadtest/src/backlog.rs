//! How far a consumer group has got: its committed offsets against the ends of the topics it reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::reader;

/// Bound of each question to the broker.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Where a group stood at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// Records that the group has committed since the beginning.
    pub committed: u64,
    /// Records written since the beginning.
    pub written: u64,
}

impl Look {
    /// Records that wait.
    pub fn waiting(&self) -> u64 {
        self.written.saturating_sub(self.committed)
    }
}

/// A view of one group on its topics. It asks and never joins the group.
struct Group {
    consumer: BaseConsumer,
    topics: Vec<Topic>,
    /// Committed when the view was opened.
    committed: u64,
}

/// One of them.
struct Topic {
    name: String,
    /// Offset of each partition's first record.
    starts: Vec<i64>,
    /// Each partition's end when the view was opened.
    ends: Vec<i64>,
}

impl Group {
    fn open(bootstrap_servers: &str, group: &str, topics: &[String]) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", group)
            // A read_committed client would wait for transactions under way before it answers.
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let topics = topics.iter().map(|name| {
            let partitions = partition_count(&consumer, name)?;
            let (starts, ends) = watermarks(&consumer, name, partitions)?.into_iter().unzip();
            Ok(Topic { name: name.clone(), starts, ends })
        });
        let topics = topics.collect::<Result<_>>()?;
        let mut view = Self { consumer, topics, committed: 0 };
        view.committed = view.committed()?;
        Ok(view)
    }

    fn look(&self) -> Result<Look> {
        let committed = self.committed()? - self.committed;
        let written = self.written()?.iter().sum();
        Ok(Look { at: Instant::now(), committed, written })
    }

    /// Records written to each partition since the view was opened, of all topics.
    fn written(&self) -> Result<Vec<u64>> {
        let mut written = Vec::new();
        for topic in &self.topics {
            let now = ends(&self.consumer, &topic.name, topic.starts.len() as i32)?;
            written.resize(written.len().max(now.len()), 0);
            for (sum, (now, then)) in written.iter_mut().zip(now.into_iter().zip(&topic.ends)) {
                *sum += (now - then).max(0) as u64;
            }
        }
        Ok(written)
    }

    /// Sum of the offsets the group has committed; a partition without one counts from its first record.
    fn committed(&self) -> Result<u64> {
        Ok(self.offsets()?.into_iter().sum())
    }

    /// The same of every partition of every topic, in their order.
    fn offsets(&self) -> Result<Vec<u64>> {
        let mut partitions = TopicPartitionList::new();
        for topic in &self.topics {
            partitions.add_partition_range(&topic.name, 0, topic.starts.len() as i32 - 1);
        }
        let answer = self.consumer.committed_offsets(partitions, PATIENCE);
        let answer = answer.context("cannot read the group's committed offsets")?;
        let starts = self.topics.iter().flat_map(|topic| &topic.starts);
        let offsets = answer.elements().into_iter().zip(starts).map(|(partition, start)| {
            partition
                .error()
                .with_context(|| format!("no offset for {}/{}", partition.topic(), partition.partition()))?;
            Ok(match partition.offset() {
                Offset::Offset(offset) => offset.max(0) as u64,
                _ => *start as u64,
            })
        });
        offsets.collect()
    }
}

/// Records of `topics` that `group` has not committed, whenever they were written.
///
/// # Errors
/// When the broker does not answer or a topic does not exist.
pub fn lag(bootstrap_servers: &str, group: &str, topics: &[String]) -> Result<u64> {
    let view = Group::open(bootstrap_servers, group, topics)?;
    let ends = view.topics.iter().flat_map(|topic| &topic.ends);
    Ok(view.offsets()?.into_iter().zip(ends).map(|(committed, end)| (*end as u64).saturating_sub(committed)).sum())
}

fn watermarks(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Vec<(i64, i64)>> {
    let ends = (0..partitions).map(|partition| {
        let ends = reader::watermarks(consumer, topic, partition);
        ends.with_context(|| format!("cannot read the ends of {topic}/{partition}"))
    });
    ends.collect()
}

/// Where every partition ends. In one request to each broker: what is watched is being measured, and shares its machine with this.
fn ends(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Vec<i64>> {
    let mut wanted = TopicPartitionList::with_capacity(partitions as usize);
    for partition in 0..partitions {
        wanted.add_partition_offset(topic, partition, Offset::End)?;
    }
    let unknown = || format!("cannot read the ends of {topic}");
    let answer = consumer.offsets_for_times(wanted, PATIENCE).with_context(unknown)?;
    let end = |partition: TopicPartitionListElem<'_>| {
        partition.error()?;
        match partition.offset() {
            Offset::Offset(end) => Ok(end),
            _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset)),
        }
    };
    answer.elements().into_iter().map(end).collect::<KafkaResult<_>>().with_context(unknown)
}

fn partition_count(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).context("cannot reach Kafka")?;
    let Some(found) = metadata.topics().first() else { bail!("topic {topic} does not exist") };
    ensure!(found.error().is_none() && !found.partitions().is_empty(), "topic {topic} does not exist");
    Ok(found.partitions().len() as i32)
}

/// Looks at a group five times a second, on a thread of its own.
#[derive(Debug)]
pub struct Backlog(Arc<Shared>);

struct Shared {
    group: Group,
    stop: AtomicBool,
    looks: Mutex<Vec<Look>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let topics: Vec<_> = self.group.topics.iter().map(|topic| &topic.name).collect();
        f.debug_struct("Backlog").field("topics", &topics).finish_non_exhaustive()
    }
}

impl Backlog {
    /// Looks the topics up and begins to watch. What was written before is no part of the backlog.
    ///
    /// # Errors
    /// When the broker does not answer or a topic does not exist.
    pub fn watch(bootstrap_servers: &str, group: &str, topics: &[String]) -> Result<Self> {
        let group = Group::open(bootstrap_servers, group, topics)?;
        let shared = Arc::new(Shared { group, stop: AtomicBool::new(false), looks: Mutex::default() });
        let seen = shared.clone();
        thread::Builder::new().name("backlog".to_owned()).spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                // A broker that is being restarted leaves a gap.
                if let Ok(look) = seen.group.look() {
                    seen.looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                }
                thread::sleep(INTERVAL);
            }
        })?;
        Ok(Self(shared))
    }

    /// Every look so far.
    pub fn looks(&self) -> Vec<Look> {
        self.0.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest look.
    pub fn latest(&self) -> Option<Look> {
        self.0.looks.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// Records written to each partition so far.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn partitions(&self) -> Result<Vec<u64>> {
        self.0.group.written()
    }
}

/// Tells what moves from what stands still.
#[derive(Debug)]
pub struct Movement {
    since: Instant,
    committed: u64,
}

impl Movement {
    /// It moves now.
    pub fn begin() -> Self {
        Self { since: Instant::now(), committed: 0 }
    }

    /// Enters how many records are committed by now.
    pub fn see(&mut self, committed: u64) {
        if committed > self.committed {
            *self = Self { since: Instant::now(), committed };
        }
    }

    /// Whether nothing has moved for `patience`.
    pub fn stands_still(&self, patience: Duration) -> bool {
        self.since.elapsed() >= patience
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// How fast a backlog went: records between the first commit and the last, and the seconds between the two. So neither a starting
/// processor nor the batch it worked on first is counted.
pub fn drained(looks: &[Look]) -> Option<(u64, f64)> {
    let start = looks.first()?.committed;
    let first = looks.iter().find(|look| look.committed > start)?;
    let end = looks.last()?.committed;
    let last = looks.iter().find(|look| look.committed == end)?;
    let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
    (seconds > 0.0).then(|| (end - first.committed, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_counts_from_the_first_commit_to_the_last() {
        let start = Instant::now();
        let look = |ms, committed| Look { at: start + Duration::from_millis(ms), committed, written: 1000 };
        let looks = [look(0, 10), look(500, 10), look(1000, 110), look(2000, 510), look(3000, 1000), look(9000, 1000)];
        assert_eq!(drained(&looks), Some((890, 2.0)));
        assert_eq!(looks[3].waiting(), 490);
        assert_eq!(drained(&looks[..3]), None, "one commit is no rate");
        assert_eq!(drained(&[]), None);
    }
}
