//! `relayctl groups`: how far a consumer group is.

use std::collections::BTreeMap;

use anyhow::bail;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::connect::{Connection, REQUEST_TIMEOUT};
use crate::exit::{Exit, Refusal};
use crate::output::{Output, Row};

/// The processor's consumer group, unless configured otherwise.
pub(crate) const GROUP: &str = "coderelay-processor";

/// Consumer groups
#[derive(Debug, clap::Subcommand)]
pub(crate) enum GroupsCommand {
    /// Show committed offset, log end offset and lag of every partition a group has committed
    Lag {
        /// Consumer group
        #[arg(long, default_value = GROUP)]
        group: String,
        /// Only this topic (repeatable) [default: all the group has committed]
        #[arg(long)]
        topic: Vec<String>,
    },
}

/// A group's standing on one partition.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Standing {
    group: String,
    topic: String,
    partition: i32,
    /// Committed offset: the next record to process. None where the group has committed nothing.
    current_offset: Option<i64>,
    /// Last stable offset.
    log_end_offset: i64,
    lag: i64,
}

impl Row for Standing {
    const HEADER: &'static [&'static str] = &["group", "topic", "partition", "current offset", "log end offset", "lag"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.group.clone(),
            self.topic.clone(),
            self.partition.to_string(),
            self.current_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
            self.log_end_offset.to_string(),
            self.lag.to_string(),
        ]
    }
}

/// Runs the verb; blocks. [`Exit::NotFound`] where the group has neither members nor offsets.
pub(crate) fn run(command: GroupsCommand, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let GroupsCommand::Lag { group, topic: only } = command;
    let consumer = connection.consumer(&group)?;
    let mut rows = Vec::new();
    for ((topic, partition), committed) in committed(&consumer, &only)? {
        if committed.is_none() && only.is_empty() {
            continue;
        }
        let (low, end) = consumer.fetch_watermarks(&topic, partition, REQUEST_TIMEOUT)?;
        let lag = (end - committed.unwrap_or(low).max(low)).max(0);
        let (group, current_offset) = (group.clone(), committed);
        rows.push(Standing { group, topic, partition, current_offset, log_end_offset: end, lag });
    }
    let state = state(&consumer, &group)?;
    if rows.is_empty() && state.is_none() {
        bail!(Refusal::NotFound(format!("no consumer group {group} on {}", connection.kafka)));
    }
    output.list(&rows)?;
    let total: i64 = rows.iter().map(|row| row.lag).sum();
    let state = state.unwrap_or_else(|| "not running".to_owned());
    output.say(&format!("{group}: {state}, lag {total}"))?;
    Ok(Exit::Success)
}

/// Committed offsets of a group on every partition of these topics (all topics where none is named). The consumer must
/// have the group's id; it need not be a member.
fn committed(consumer: &BaseConsumer, only: &[String]) -> anyhow::Result<BTreeMap<(String, i32), Option<i64>>> {
    let metadata = consumer.fetch_metadata(None, REQUEST_TIMEOUT)?;
    let mut wanted = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| !topic.name().starts_with("__")) {
        if only.is_empty() || only.iter().any(|name| name == topic.name()) {
            for partition in topic.partitions() {
                wanted.add_partition(topic.name(), partition.id());
            }
        }
    }
    if wanted.count() == 0 {
        return Ok(BTreeMap::new());
    }
    committed_offsets(consumer, wanted)
}

/// The group's committed offsets of exactly these partitions, transactions that are still open not included.
pub(crate) fn committed_offsets(
    consumer: &BaseConsumer,
    wanted: TopicPartitionList,
) -> anyhow::Result<BTreeMap<(String, i32), Option<i64>>> {
    let found = consumer.committed_offsets(wanted, REQUEST_TIMEOUT)?;
    let mut offsets = BTreeMap::new();
    for element in found.elements() {
        element.error()?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        offsets.insert((element.topic().to_owned(), element.partition()), offset);
    }
    Ok(offsets)
}

/// How many members a group of any protocol has.
pub(crate) fn members(consumer: &BaseConsumer, group: &str) -> anyhow::Result<usize> {
    let list = consumer.fetch_group_list(Some(group), REQUEST_TIMEOUT)?;
    Ok(list.groups().iter().map(|group| group.members().len()).sum())
}

/// The group's state in words, or none if the coordinator does not know it.
fn state(consumer: &BaseConsumer, group: &str) -> anyhow::Result<Option<String>> {
    let list = consumer.fetch_group_list(Some(group), REQUEST_TIMEOUT)?;
    let found = list.groups().iter().find(|candidate| candidate.name() == group && candidate.state() != "Dead");
    Ok(found.map(|group| format!("{}, {} members", group.state(), group.members().len())))
}
