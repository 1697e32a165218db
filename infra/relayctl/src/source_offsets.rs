//! How far MirrorMaker 2 has read each partition of a region, read from its offset topic on the target, and written anew.
//!
//! Connect finds a key by its bytes, and reads every partition of the topic without an order between them, so a key is written again as it
//! is, where it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use coderelay_mirrormaker::{SourcePartition, source_offset, topic};
use rdkafka::Message as _;
use rdkafka::producer::BaseRecord;

use crate::connect::Connection;
use crate::exit::Refusal;
use crate::groups::members;
use crate::outbox::Outbox;
use crate::reader::{Offsets, Reader};

/// A key as it stands in the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    /// The partition of the offset topic in which the key is.
    place: i32,
    /// The first offset that has not been mirrored, where any has.
    next: Option<i64>,
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
        Reader::open(target, &topic::offsets(source))?.read_all(|record| {
            offsets.note(record.partition(), record.key().unwrap_or_default(), record.payload());
        })?;
        Ok(offsets)
    }

    fn note(&mut self, place: i32, key: &[u8], value: Option<&[u8]>) {
        if let Some(partition) = SourcePartition::parse(key).filter(|partition| partition.cluster == self.source) {
            let entry = Entry { key: key.to_owned(), place, next: source_offset::next(value) };
            self.entries.insert(partition, entry);
        }
    }

    /// The first offset of each partition of a topic that has not been mirrored, where any has.
    pub(crate) fn mirrored(&self, topic: &str) -> Offsets {
        let of_topic = self.entries.iter().filter(|(partition, _)| partition.topic == topic);
        of_topic.filter_map(|(partition, entry)| Some((partition.partition, entry.next?))).collect()
    }

    /// Makes `MirrorMaker`, which must not be running, go on with the partitions of `topic` at these offsets, and with everything else of this
    /// source at its beginning; blocks. Says how many keys were written.
    ///
    /// # Errors
    /// When the target does not take a record.
    pub(crate) fn reset(&self, target: &Connection, packets: &str, next: &Offsets) -> anyhow::Result<usize> {
        let topic = topic::offsets(&self.source);
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
            let value = source_offset::value(next);
            match self.entries.get(&partition) {
                Some(entry) => wanted.push((entry.key.clone(), Some(entry.place), value)),
                None if value.is_some() => wanted.push((partition.key(), None, value)),
                None => {}
            }
        }
        wanted
    }
}

/// Waits until no worker of the `MirrorMaker` that reads `source` and writes to `target` is left; blocks. One that was killed holds its place
/// until its session is over.
///
/// # Errors
/// When one is still there afterwards.
pub(crate) fn await_stopped(target: &Connection, source: &str, patience: Duration) -> anyhow::Result<()> {
    let group = topic::worker_group(source);
    let consumer = target.consumer(&group)?;
    let deadline = Instant::now() + patience;
    while members(&consumer, &group)? > 0 {
        if Instant::now() > deadline {
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
