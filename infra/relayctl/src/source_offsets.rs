//! How far MirrorMaker 2 has read each partition of a region: Connect's source offsets, in the topic it keeps them in.
//!
//! In dedicated mode this is `mm2-offsets.<source>.internal` on the target. A key is the JSON array of connector and partition
//! (`MirrorUtils.wrapPartition`), a value `{"offset":N}` with the last record that was mirrored: a task that starts seeks to N + 1, and to the
//! earliest record where there is no value (`MirrorSourceTask.initializeConsumer`, Kafka 4.3). Connect finds a key by its bytes and reads
//! every partition of the topic without an order between them, so a key is written again as it is, where it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::Message as _;
use rdkafka::producer::BaseRecord;
use serde::Deserialize;

use crate::connect::Connection;
use crate::exit::Refusal;
use crate::outbox::Outbox;
use crate::reader::{Offsets, Reader};

/// The connector that mirrors topics, as dedicated `MirrorMaker` names it.
const CONNECTOR: &str = "MirrorSourceConnector";

/// The topic on the target that has the offsets of what is mirrored from `source`.
pub(crate) fn topic(source: &str) -> String {
    format!("mm2-offsets.{source}.internal")
}

/// A partition in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct SourcePartition {
    cluster: String,
    partition: i32,
    topic: String,
}

/// The value of a record.
#[derive(Deserialize)]
struct SourceOffset {
    offset: i64,
}

/// A key as it stands in the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    /// The partition of the offset topic in which the key is.
    place: i32,
    /// The last record that was mirrored.
    offset: Option<i64>,
}

/// What `MirrorMaker` has noted of one source.
#[derive(Debug)]
pub(crate) struct SourceOffsets {
    source: String,
    entries: BTreeMap<SourcePartition, Entry>,
}

impl SourceOffsets {
    /// Reads what is noted on `target` of `source`; blocks.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] where `MirrorMaker` has never run in this direction.
    pub(crate) fn read(target: &Connection, source: &str) -> anyhow::Result<Self> {
        let mut offsets = Self { source: source.to_owned(), entries: BTreeMap::new() };
        Reader::open(target, &topic(source))?.read_all(|record| {
            offsets.note(record.partition(), record.key().unwrap_or_default(), record.payload());
        })?;
        Ok(offsets)
    }

    fn note(&mut self, place: i32, key: &[u8], value: Option<&[u8]>) {
        let Ok((connector, partition)) = serde_json::from_slice::<(String, SourcePartition)>(key) else { return };
        if connector == CONNECTOR && partition.cluster == self.source {
            let offset = value.and_then(|value| serde_json::from_slice::<SourceOffset>(value).ok());
            let entry = Entry { key: key.to_owned(), place, offset: offset.map(|found| found.offset) };
            self.entries.insert(partition, entry);
        }
    }

    /// The first offset of each partition of a topic that has not been mirrored, where any has.
    pub(crate) fn mirrored(&self, topic: &str) -> Offsets {
        let of_topic = self.entries.iter().filter(|(partition, _)| partition.topic == topic);
        of_topic.filter_map(|(partition, entry)| Some((partition.partition, entry.offset? + 1))).collect()
    }

    /// Makes `MirrorMaker`, which must not be running, go on with the partitions of `topic` at these offsets, and with everything else of this
    /// source at its beginning; blocks. Says how many keys were written.
    ///
    /// # Errors
    /// When the target does not take a record.
    pub(crate) fn reset(&self, target: &Connection, packets: &str, next: &Offsets) -> anyhow::Result<usize> {
        let topic = topic(&self.source);
        let wanted = self.wanted(packets, next);
        let outbox = Outbox::connect(target)?;
        for (key, place, value) in &wanted {
            let mut record = BaseRecord::<[u8], [u8]>::to(&topic).key(key);
            // A key that is new goes where Connect's own producer would put it.
            record.partition = *place;
            record.payload = value.as_deref().map(str::as_bytes);
            outbox.send(record)?;
        }
        outbox.finish().with_context(|| format!("writing {topic}"))?;
        Ok(wanted.len())
    }

    /// Keys, their places where they have one, and their values (a tombstone where there is to be none).
    fn wanted(&self, packets: &str, next: &Offsets) -> Vec<(Vec<u8>, Option<i32>, Option<String>)> {
        let mut wanted = Vec::new();
        for (partition, entry) in &self.entries {
            if partition.topic != packets || !next.contains_key(&partition.partition) {
                wanted.push((entry.key.clone(), Some(entry.place), None));
            }
        }
        for (&partition, &next) in next {
            let partition = SourcePartition { cluster: self.source.clone(), partition, topic: packets.to_owned() };
            let value = (next > 0).then(|| format!(r#"{{"offset":{}}}"#, next - 1));
            match self.entries.get(&partition) {
                Some(entry) => wanted.push((entry.key.clone(), Some(entry.place), value)),
                None if value.is_some() => wanted.push((partition.key(), None, value)),
                None => {}
            }
        }
        wanted
    }
}

impl SourcePartition {
    /// Its key, in the order in which Java's `HashMap` has the three names.
    fn key(&self) -> Vec<u8> {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let Self { cluster, partition, topic } = self;
        let (cluster, topic) = (text(cluster), text(topic));
        format!(r#"["{CONNECTOR}",{{"cluster":{cluster},"partition":{partition},"topic":{topic}}}]"#).into_bytes()
    }
}

/// Waits until no worker of the `MirrorMaker` that reads `source` and writes to `target` is left; blocks. One that was killed holds its place
/// until its session is over.
///
/// # Errors
/// When one is still there afterwards.
pub(crate) fn await_stopped(target: &Connection, source: &str, patience: Duration) -> anyhow::Result<()> {
    let group = format!("{source}-mm2");
    let consumer = target.consumer(&group)?;
    let deadline = std::time::Instant::now() + patience;
    while crate::groups::members(&consumer, &group)? > 0 {
        if std::time::Instant::now() > deadline {
            bail!(
                "the MirrorMaker from {source} is running (group {group} on {}): stop it first, for it would overwrite its \
                 offsets and mirror what is being restored a second time",
                target.kafka
            );
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// No `MirrorMaker` has ever run there.
pub(crate) fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Refusal::NotFound(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: &str = "code.packets.v1";

    fn key(topic: &str, partition: i32) -> String {
        format!(r#"["MirrorSourceConnector",{{"cluster":"us-east","partition":{partition},"topic":"{topic}"}}]"#)
    }

    fn noted(records: &[(i32, String, Option<&str>)]) -> SourceOffsets {
        let mut offsets = SourceOffsets { source: "us-east".into(), entries: BTreeMap::new() };
        for (place, key, value) in records {
            offsets.note(*place, key.as_bytes(), value.map(str::as_bytes));
        }
        offsets
    }

    #[test]
    fn a_topics_own_offsets_tell_how_far_it_is_and_the_last_word_counts() {
        let heartbeat = r#"["MirrorHeartbeatConnector",{"sourceClusterAlias":"us-east"}]"#.to_owned();
        let offsets = noted(&[
            (1, key(PACKETS, 1), Some(r#"{"offset":5}"#)),
            (1, key(PACKETS, 1), Some(r#"{"offset":9}"#)),
            (0, key(PACKETS, 2), Some(r#"{"offset":3}"#)),
            (0, key(PACKETS, 2), None),
            (2, key("heartbeats", 0), Some(r#"{"offset":77}"#)),
            (3, heartbeat, Some(r#"{"offset":0}"#)),
        ]);
        assert_eq!(offsets.mirrored(PACKETS), [(1, 10)].into());
    }

    #[test]
    fn a_reset_writes_each_key_as_it_is_and_where_it_is() {
        let offsets = noted(&[
            (3, key(PACKETS, 0), Some(r#"{"offset":900}"#)),
            (1, key(PACKETS, 1), Some(r#"{"offset":900}"#)),
            (2, key("heartbeats", 0), Some(r#"{"offset":77}"#)),
        ]);
        let wanted = offsets.wanted(PACKETS, &[(0, 40), (1, 0), (2, 7), (3, 0)].into());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let wanted: Vec<_> = wanted.iter().map(|(key, place, value)| (text(key), *place, value.as_deref())).collect();
        let expected = [
            (key("heartbeats", 0), Some(2), None),
            (key(PACKETS, 0), Some(3), Some(r#"{"offset":39}"#)),
            (key(PACKETS, 1), Some(1), None),
            (key(PACKETS, 2), None, Some(r#"{"offset":6}"#)),
        ];
        assert_eq!(wanted, expected);
    }
}
