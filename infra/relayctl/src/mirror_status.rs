//! How far MirrorMaker 2 is in one direction, out of what it keeps in Kafka: the states of its tasks, its offsets and its heartbeats.
//!
//! Neither its log nor its REST port tells: a task that has failed stays failed while both look well.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::Context as _;
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;
use serde::{Deserialize, Serialize};

use crate::connect::Connection;
use crate::exit::Refusal;
use crate::output::Row;
use crate::position::Position;
use crate::reader::{Offsets, Reader};
use crate::source_offsets::{SourceOffsets, is_missing};

/// From how old a heartbeat on, in milliseconds, the mirror stands still: one is sent every second, and a rebalance stops them for some.
const STILL: i64 = 15_000;

/// One direction of the mirror at one moment.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MirrorStatus {
    /// The region whose packets are mirrored.
    pub(crate) source: String,
    /// The region that gets them.
    pub(crate) target: String,
    /// Tasks that are running.
    pub(crate) running: usize,
    /// Tasks that are not, and what they said last.
    pub(crate) troubled: BTreeMap<String, String>,
    /// Age of the youngest heartbeat of the source that has arrived in the target; none has where absent.
    pub(crate) heartbeat_ms: Option<i64>,
    /// Packets in the source that were not mirrored when `MirrorMaker` noted its offsets, which it does every second.
    pub(crate) behind: i64,
}

impl MirrorStatus {
    /// Whether every task runs and a young heartbeat has arrived.
    pub(crate) fn is_well(&self) -> bool {
        self.troubled.is_empty() && self.running > 0 && self.heartbeat_ms.is_some_and(|age| age < STILL)
    }

    /// Asks the brokers of both regions, at `now` in milliseconds since the epoch; blocks.
    ///
    /// # Errors
    /// When one of them does not answer. Topics that `MirrorMaker` has not made yet are no error.
    pub(crate) fn read([source, target]: [(&str, &Connection); 2], now: impl Fn() -> i64) -> anyhow::Result<Self> {
        let mut tasks = BTreeMap::new();
        each(target.1, &format!("mm2-status.{}.internal", source.0), Position::Earliest, |record| {
            note_task(&mut tasks, text(record.key()), record.payload());
        })?;
        let packets = source.1.topics().packets;
        let mirrored = match SourceOffsets::read(target.1, source.0) {
            Err(error) if is_missing(&error) => Offsets::new(),
            read => read?.mirrored(&packets),
        };
        let reader = Reader::open(source.1, &packets)?;
        let (lows, ends) = (reader.resolve(Position::Earliest)?, reader.ends()?);
        let mut youngest = None;
        each(target.1, &format!("{}.heartbeats", source.0), Position::Last(10), |record| {
            youngest = youngest.max(record.timestamp().to_millis());
        })?;
        let troubled: BTreeMap<_, _> = tasks.iter().filter(|(_, said)| *said != "RUNNING").collect();
        Ok(Self {
            source: source.0.to_owned(),
            target: target.0.to_owned(),
            running: tasks.len() - troubled.len(),
            troubled: troubled.into_iter().map(|(name, said)| (name.clone(), said.clone())).collect(),
            heartbeat_ms: youngest.map(|youngest| (now() - youngest).max(0)),
            behind: behind(&lows, &ends, &mirrored),
        })
    }
}

impl Row for MirrorStatus {
    const HEADER: &'static [&'static str] = &["direction", "tasks", "last heartbeat", "packets behind"];

    fn cells(&self) -> Vec<String> {
        let troubled = self.troubled.iter().map(|(name, said)| format!("{name} {said}"));
        let tasks = [format!("{} running", self.running)].into_iter().chain(troubled).collect::<Vec<_>>().join(", ");
        let heartbeat = self.heartbeat_ms.map_or("none has arrived".to_owned(), |age| format!("{age} ms ago"));
        vec![format!("{}->{}", self.source, self.target), tasks, heartbeat, self.behind.to_string()]
    }
}

/// Calls `visit` with every record from `from` to the end of a topic; with none if there is no such topic.
fn each(
    connection: &Connection,
    topic: &str,
    from: Position,
    mut visit: impl FnMut(&BorrowedMessage<'_>),
) -> anyhow::Result<()> {
    let reader = match Reader::open(connection, topic) {
        Err(error) if matches!(error.downcast_ref(), Some(Refusal::NotFound(_))) => return Ok(()),
        opened => opened?,
    };
    let (from, ends) = (reader.resolve(from)?, reader.ends()?);
    reader
        .read(&from, Some(&ends), |record| {
            visit(record);
            Ok(ControlFlow::Continue(()))
        })
        .with_context(|| format!("reading {topic}"))
}

fn text(bytes: Option<&[u8]>) -> &str {
    bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}

/// The value of a task's record in the status topic.
#[derive(Deserialize)]
struct TaskRecord {
    state: String,
    trace: Option<String>,
}

/// What a record of the status topic says of a task. Without a value there is no such task any more.
fn note_task(tasks: &mut BTreeMap<String, String>, key: &str, value: Option<&[u8]>) {
    let Some(name) = key.strip_prefix("status-task-") else { return };
    match value.and_then(|value| serde_json::from_slice::<TaskRecord>(value).ok()) {
        Some(TaskRecord { state, trace }) => {
            let why = trace.as_deref().and_then(|trace| trace.lines().next()).map(|line| format!(": {line}"));
            tasks.insert(name.to_owned(), state + why.as_deref().unwrap_or_default());
        }
        None => drop(tasks.remove(name)),
    }
}

fn behind(lows: &Offsets, ends: &Offsets, mirrored: &Offsets) -> i64 {
    let waiting = |(partition, end): (&i32, &i64)| {
        let low = lows.get(partition).copied().unwrap_or_default();
        (end - mirrored.get(partition).copied().unwrap_or(low).max(low)).max(0)
    };
    ends.iter().map(waiting).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_task_counts_until_there_is_no_such_task() {
        let mut tasks = BTreeMap::new();
        note_task(&mut tasks, "status-connector-MirrorSourceConnector", Some(br#"{"state":"RUNNING"}"#));
        note_task(&mut tasks, "status-task-MirrorSourceConnector-0", Some(br#"{"state":"RUNNING","trace":null}"#));
        note_task(
            &mut tasks,
            "status-task-MirrorSourceConnector-1",
            Some(br#"{"state":"FAILED","trace":"big\n\tat"}"#),
        );
        let expected = [("MirrorSourceConnector-0", "RUNNING"), ("MirrorSourceConnector-1", "FAILED: big")];
        assert_eq!(tasks, expected.map(|(name, said)| (name.to_owned(), said.to_owned())).into());
        note_task(&mut tasks, "status-task-MirrorSourceConnector-1", None);
        assert_eq!(tasks.len(), 1);
    }

    #[test]
    fn what_was_deleted_before_it_was_mirrored_is_not_behind() {
        let mirrored = [(1, 10)].into();
        let (lows, ends) = ([(0, 5), (1, 0), (2, 0)].into(), [(0, 8), (1, 12), (2, 0)].into());
        assert_eq!(behind(&lows, &ends, &mirrored), 3 + 2);
    }

    #[test]
    fn a_mirror_is_well_while_its_tasks_run_and_heartbeats_arrive() {
        let well = || MirrorStatus {
            source: "us-east".into(),
            target: "eu-west".into(),
            running: 2,
            troubled: BTreeMap::new(),
            heartbeat_ms: Some(900),
            behind: 100_000,
        };
        assert!(well().is_well());
        assert!(!MirrorStatus { heartbeat_ms: Some(STILL), ..well() }.is_well());
        assert!(!MirrorStatus { heartbeat_ms: None, ..well() }.is_well());
        assert!(!MirrorStatus { running: 0, ..well() }.is_well());
        assert!(!MirrorStatus { troubled: [("a".into(), "FAILED".into())].into(), ..well() }.is_well());
    }
}
