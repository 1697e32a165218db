//! How far MirrorMaker 2 is in one direction, out of what it keeps in Kafka: the states of its tasks, its offsets and its heartbeats.
//!
//! Neither its log nor its REST port tells: a task that has failed stays failed while both look well.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use coderelay_mirrormaker::topic::{self, HEARTBEATS};
use coderelay_mirrormaker::{TaskStatus, restarts};
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;
use serde::Serialize;

use crate::connect::Connection;
use crate::output::Row;
use crate::position::{Position, millis};
use crate::reader::{Offsets, Reader};
use crate::region::Region;
use crate::source_offsets::{SourceOffsets, is_missing};

/// From how old a heartbeat on, in milliseconds, the mirror stands still: one is sent every second, and a rebalance stops them for some.
const STILL: i64 = 15_000;

/// One direction of the mirror.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    /// The region whose packets are mirrored.
    pub(crate) source: String,
    /// The region that gets them.
    pub(crate) target: String,
    from: Connection,
    to: Connection,
    restarts: Option<PathBuf>,
}

/// One direction of the mirror at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MirrorStatus {
    /// The region whose packets are mirrored.
    pub(crate) source: String,
    /// The region that gets them.
    pub(crate) target: String,
    /// What each task said of itself last.
    pub(crate) tasks: BTreeMap<String, String>,
    /// When the youngest heartbeat of the source that has arrived in the target was written, in milliseconds since the epoch.
    #[serde(skip)]
    pub(crate) heartbeat: Option<i64>,
    /// Its age; none has arrived where absent, or the target does not answer.
    pub(crate) heartbeat_ms: Option<i64>,
    /// Packets in the source that were not mirrored when `MirrorMaker` noted its offsets: every 20 ms, as it is configured here. Unknown
    /// where absent, like the next.
    pub(crate) behind: Option<i64>,
    /// Age of the oldest of them; 0 where there is none.
    pub(crate) behind_ms: Option<i64>,
    /// How often the supervisor of the `MirrorMaker` that writes to the target has started it again; unknown where absent.
    pub(crate) restarts: Option<u64>,
    /// Why anything above could not be had: which region does not answer.
    pub(crate) trouble: Option<String>,
}

/// What has arrived in the target.
#[derive(Debug, Default)]
struct Arrived {
    tasks: BTreeMap<String, String>,
    heartbeat: Option<i64>,
    mirrored: Offsets,
}

/// What has not: how many packets, and when the oldest was written.
#[derive(Clone, Copy, Debug)]
struct Lag {
    records: i64,
    oldest: Option<i64>,
}

impl Direction {
    /// From a region to another.
    pub(crate) fn new(source: &Region, target: &Region, base: &Connection) -> anyhow::Result<Self> {
        Ok(Self {
            source: source.name.clone(),
            target: target.name.clone(),
            from: source.kafka(base)?,
            to: target.kafka(base)?,
            restarts: target.restarts(),
        })
    }

    /// Asks the brokers of both regions, and the supervisor's file; blocks. What cannot be had is absent, and the reason is said: this is
    /// asked most when a region is away. Topics that `MirrorMaker` has not made yet, and a file that is not there, are no trouble.
    pub(crate) fn status(&self) -> MirrorStatus {
        let arrived = self.arrived().with_context(|| self.target.clone());
        let lag = match &arrived {
            Ok(arrived) => self.lag(&arrived.mirrored).map(Some).with_context(|| self.source.clone()),
            Err(_) => Ok(None),
        };
        let restarts = self.restarts();
        let troubles = [arrived.as_ref().err(), lag.as_ref().err(), restarts.as_ref().err()];
        let troubles: Vec<String> = troubles.into_iter().flatten().map(|error| format!("{error:#}")).collect();
        let arrived = arrived.unwrap_or_default();
        let lag = lag.ok().flatten();
        let now = millis(SystemTime::now());
        let age = |since: i64| (now - since).max(0);
        MirrorStatus {
            source: self.source.clone(),
            target: self.target.clone(),
            tasks: arrived.tasks,
            heartbeat: arrived.heartbeat,
            heartbeat_ms: arrived.heartbeat.map(age),
            behind: lag.map(|lag| lag.records),
            behind_ms: lag.map(|lag| lag.oldest.map_or(0, age)),
            restarts: restarts.ok().flatten(),
            trouble: (!troubles.is_empty()).then(|| troubles.join("; ")),
        }
    }

    /// What the target's brokers tell.
    fn arrived(&self) -> anyhow::Result<Arrived> {
        let Self { source, to, .. } = self;
        let mut arrived = Arrived::default();
        each(to, &topic::status(source), Position::Earliest, |record| {
            note_task(&mut arrived.tasks, record.key(), record.payload());
        })?;
        each(to, &topic::mirrored(source, HEARTBEATS), Position::Last(10), |record| {
            arrived.heartbeat = arrived.heartbeat.max(record.timestamp().to_millis());
        })?;
        arrived.mirrored = match SourceOffsets::read(to, source) {
            Err(error) if is_missing(&error) => Offsets::new(),
            read => read?.mirrored(&self.from.topics().packets),
        };
        Ok(arrived)
    }

    /// What waits in the source behind what is mirrored.
    fn lag(&self, mirrored: &Offsets) -> anyhow::Result<Lag> {
        let reader = Reader::open(&self.from, &self.from.topics().packets)?;
        let (lows, ends) = (reader.resolve(Position::Earliest)?, reader.ends()?);
        let waiting = waiting(&lows, &ends, mirrored);
        let records = waiting.iter().map(|(partition, next)| ends[partition] - next).sum();
        Ok(Lag { records, oldest: oldest(&reader, &waiting)? })
    }

    /// What the supervisor has counted.
    fn restarts(&self) -> anyhow::Result<Option<u64>> {
        let Some(file) = &self.restarts else { return Ok(None) };
        restarts::read(file).with_context(|| file.display().to_string())
    }
}

impl MirrorStatus {
    /// Whether both regions answer, every task runs and a young heartbeat has arrived.
    pub(crate) fn is_well(&self) -> bool {
        let running = !self.tasks.is_empty() && self.tasks.values().all(|said| is_running(said));
        self.trouble.is_none() && running && self.heartbeat_ms.is_some_and(|age| age < STILL)
    }
}

/// Whether a task that said this runs.
pub(crate) fn is_running(said: &str) -> bool {
    said == "RUNNING"
}

impl Row for MirrorStatus {
    const HEADER: &'static [&'static str] = &[
        "direction",
        "tasks",
        "last heartbeat",
        "packets behind",
        "oldest of them",
        "supervisor's restarts",
        "trouble",
    ];

    fn cells(&self) -> Vec<String> {
        let running = self.tasks.values().filter(|said| is_running(said)).count();
        let troubled =
            self.tasks.iter().filter(|(_, said)| !is_running(said)).map(|(name, said)| format!("{name} {said}"));
        let tasks = [format!("{running} running")].into_iter().chain(troubled).collect::<Vec<_>>().join(", ");
        let unknown = || "unknown".to_owned();
        let heartbeat = match self.heartbeat_ms {
            Some(age) => format!("{age} ms ago"),
            None if self.trouble.is_some() => unknown(),
            None => "none has arrived".to_owned(),
        };
        let oldest = match self.behind {
            Some(0) => "-".to_owned(),
            _ => self.behind_ms.map_or_else(unknown, |age| format!("{age} ms")),
        };
        vec![
            format!("{}->{}", self.source, self.target),
            tasks,
            heartbeat,
            self.behind.map_or_else(unknown, |records| records.to_string()),
            oldest,
            self.restarts.map_or_else(unknown, |restarts| restarts.to_string()),
            self.trouble.clone().unwrap_or_else(|| "-".to_owned()),
        ]
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
        Err(error) if is_missing(&error) => return Ok(()),
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

/// What a record of the status topic says of a task.
fn note_task(tasks: &mut BTreeMap<String, String>, key: Option<&[u8]>, value: Option<&[u8]>) {
    match TaskStatus::parse(key, value) {
        Some((name, Some(status))) => drop(tasks.insert(name.to_owned(), status.to_string())),
        Some((name, None)) => drop(tasks.remove(name)),
        None => {}
    }
}

/// The first offset that is not mirrored, of each partition that has one.
fn waiting(lows: &Offsets, ends: &Offsets, mirrored: &Offsets) -> Offsets {
    let next = |(&partition, &end): (&i32, &i64)| {
        let low = lows.get(&partition).copied().unwrap_or_default();
        let next = mirrored.get(&partition).copied().unwrap_or(low).max(low);
        (next < end).then_some((partition, next))
    };
    ends.iter().filter_map(next).collect()
}

/// The timestamp of the oldest of the records at these offsets.
fn oldest(reader: &Reader, offsets: &Offsets) -> anyhow::Result<Option<i64>> {
    let mut oldest: Option<i64> = None;
    let until = offsets.iter().map(|(partition, offset)| (*partition, offset + 1)).collect();
    reader.read(offsets, Some(&until), |record| {
        oldest = [oldest, record.timestamp().to_millis()].into_iter().flatten().min();
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_task_counts_until_there_is_no_such_task() {
        let mut tasks = BTreeMap::new();
        let (first, second) = ("status-task-MirrorSourceConnector-0", "status-task-MirrorSourceConnector-1");
        let running: Option<&[u8]> = Some(br#"{"state":"RUNNING","trace":null}"#);
        note_task(&mut tasks, Some(first.as_bytes()), running);
        note_task(&mut tasks, Some(second.as_bytes()), running);
        note_task(&mut tasks, Some(second.as_bytes()), Some(br#"{"state":"FAILED","trace":"big\n\tat"}"#));
        let expected = [("MirrorSourceConnector-0", "RUNNING"), ("MirrorSourceConnector-1", "FAILED: big")];
        assert_eq!(tasks, expected.map(|(name, said)| (name.to_owned(), said.to_owned())).into());
        note_task(&mut tasks, Some(second.as_bytes()), None);
        assert_eq!(tasks.len(), 1);
    }

    #[test]
    fn what_was_deleted_before_it_was_mirrored_does_not_wait() {
        let mirrored = [(1, 10)].into();
        let (lows, ends) = ([(0, 5), (1, 0), (2, 0)].into(), [(0, 8), (1, 12), (2, 0)].into());
        assert_eq!(waiting(&lows, &ends, &mirrored), [(0, 5), (1, 10)].into());
    }

    #[test]
    fn a_mirror_is_well_while_its_tasks_run_and_heartbeats_arrive() {
        let tasks = |said: &str| [("MirrorSourceConnector-0".to_owned(), said.to_owned())].into();
        let well = || MirrorStatus {
            source: "us-east".into(),
            target: "eu-west".into(),
            tasks: tasks("RUNNING"),
            heartbeat: Some(0),
            heartbeat_ms: Some(900),
            behind: Some(100_000),
            behind_ms: Some(70_000),
            restarts: None,
            trouble: None,
        };
        assert!(well().is_well());
        assert!(!MirrorStatus { heartbeat_ms: Some(STILL), ..well() }.is_well());
        assert!(!MirrorStatus { trouble: Some("us-east: away".into()), behind: None, ..well() }.is_well());
        assert!(!MirrorStatus { heartbeat_ms: None, ..well() }.is_well());
        assert!(!MirrorStatus { tasks: BTreeMap::new(), ..well() }.is_well());
        assert!(!MirrorStatus { tasks: tasks("FAILED: big"), ..well() }.is_well());
    }
}
