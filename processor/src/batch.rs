//! The records of one turn and what becomes of each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::validate::PacketLimits;

use crate::decode::{Packet, Rejection, Row, decode};
use crate::dedup::{Judgement, Memory, TooManyTopics, TopicSet};
use crate::ports::RowOutcome;
use crate::record::{Record, TopicPartition};

/// When a batch is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Records at most.
    pub records: usize,
    /// Bytes at most; a single record may exceed them alone.
    pub bytes: usize,
}

/// Records that were polled and not yet accounted for.
#[derive(Debug, Default)]
pub struct Batch {
    records: Vec<Record>,
    bytes: usize,
}

impl Batch {
    /// Adds a record.
    pub fn push(&mut self, record: Record) {
        self.bytes += record.size();
        self.records.push(record);
    }

    /// Drops the records of partitions that are no longer ours: nothing of theirs was written.
    pub fn drop_partitions(&mut self, revoked: &[TopicPartition]) {
        let revoked: HashSet<&TopicPartition> = revoked.iter().collect();
        self.records.retain(|record| !revoked.contains(&record.source));
        self.bytes = self.records.iter().map(Record::size).sum();
    }

    /// The records in the order in which they were polled.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether the next record has to wait for the next batch.
    pub fn is_full(&self, limits: &BatchLimits) -> bool {
        self.records.len() >= limits.records || self.bytes >= limits.bytes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Records held.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Per partition, the offset after the last record.
    pub fn next_offsets(&self) -> BTreeMap<TopicPartition, i64> {
        let mut offsets = BTreeMap::new();
        for record in &self.records {
            let next = offsets.entry(record.source.clone()).or_insert(0);
            *next = (*next).max(record.offset + 1);
        }
        offsets
    }
}

/// What becomes of a record. Every record ends as one of these, and each of them moves its offset.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// Stored and published.
    Accepted(Box<Packet>),
    /// Seen before with the same content: counted and dropped.
    Duplicate {
        /// What was dropped.
        packet: Box<Packet>,
        /// Whether it is the first that its topic brings of this id: then it is stored too.
        first: bool,
    },
    /// Seen before with other content: dead-lettered.
    Conflict {
        /// What was dead-lettered; its entry is that of the accepted packet.
        packet: Box<Packet>,
        /// As for a duplicate.
        first: bool,
        /// Why.
        rejection: Rejection,
    },
    /// Dead-lettered.
    Rejected(Rejection),
}

/// The fates of a batch's records, in their order.
#[derive(Debug)]
pub struct Plan {
    fates: Vec<Fate>,
}

impl Plan {
    /// Decides over every record of `batch`. Records with a timestamp before `expired_before_ms` are expired, unless the batch has a
    /// younger copy.
    ///
    /// # Errors
    /// When they come from more topics than are told apart.
    pub fn of(
        batch: &Batch,
        memory: &Memory,
        limits: &PacketLimits,
        expired_before_ms: Option<i64>,
    ) -> Result<Self, TooManyTopics> {
        let fate = |record| match expire(record, expired_before_ms) {
            Some(rejection) => Fate::Rejected(rejection),
            None => decode(record, limits).map_or_else(Fate::Rejected, |packet| Fate::Accepted(Box::new(packet))),
        };
        let mut plan = Self { fates: batch.records().iter().map(fate).collect() };
        plan.spare(batch, limits);
        plan.judge(batch, memory)?;
        Ok(plan)
    }

    /// Takes back the expiry of what has a younger copy in the batch. Were that one accepted and its row written, and the batch then begun
    /// anew when nothing expires any more, the older would be accepted and the row stay that of the younger: of another content, perhaps.
    fn spare(&mut self, batch: &Batch, limits: &PacketLimits) {
        let key = |fate: &Fate| if let Fate::Accepted(packet) = fate { Some(packet.entry.key) } else { None };
        let young: HashSet<u128> = self.fates.iter().filter_map(key).collect();
        if young.is_empty() {
            return;
        }
        let expired = |fate: &Fate| matches!(fate, Fate::Rejected(Rejection { reason: DlqReason::Expired, .. }));
        for (record, fate) in batch.records().iter().zip(&mut self.fates).filter(|(_, fate)| expired(fate)) {
            if let Ok(packet) = decode(record, limits)
                && young.contains(&packet.entry.key)
            {
                *fate = Fate::Accepted(Box::new(packet));
            }
        }
    }

    /// Takes duplicates and conflicts out of the accepted packets, partition by partition.
    fn judge(&mut self, batch: &Batch, memory: &Memory) -> Result<(), TooManyTopics> {
        let mut judgements: BTreeMap<i32, _> = self
            .accepted(batch, memory)?
            .into_iter()
            .map(|(partition, packets)| (partition, memory.judge(partition, &packets).into_iter()))
            .collect();
        let judged = std::mem::take(&mut self.fates).into_iter().zip(batch.records()).map(|(fate, record)| {
            let Fate::Accepted(mut packet) = fate else { return fate };
            match judgements.get_mut(&record.source.partition).and_then(Iterator::next) {
                Some(Judgement::Duplicate { first }) => Fate::Duplicate { packet, first },
                Some(Judgement::Conflict { first, accepted }) => {
                    packet.entry.fingerprint = accepted;
                    let rejection = conflict(&packet);
                    Fate::Conflict { packet, first, rejection }
                }
                Some(Judgement::New) | None => Fate::Accepted(packet),
            }
        });
        self.fates = judged.collect();
        Ok(())
    }

    /// Topic and entry of every packet that is accepted so far, by partition.
    fn accepted(&self, batch: &Batch, memory: &Memory) -> Result<BTreeMap<i32, Vec<(TopicSet, Entry)>>, TooManyTopics> {
        let mut accepted: BTreeMap<i32, Vec<_>> = BTreeMap::new();
        let mut last: Option<(&Arc<str>, TopicSet)> = None;
        for (record, fate) in batch.records().iter().zip(&self.fates) {
            let (Fate::Accepted(packet), source) = (fate, &record.source) else { continue };
            // Records come in runs of one topic.
            let topic = match last {
                Some((name, topic)) if Arc::ptr_eq(name, &source.topic) => topic,
                _ => memory.topic(&source.topic)?,
            };
            last = Some((&source.topic, topic));
            accepted.entry(source.partition).or_default().push((topic, packet.entry));
        }
        Ok(accepted)
    }

    /// The rows to store, in order.
    pub fn rows(&self) -> Vec<&Row> {
        self.fates
            .iter()
            .filter_map(|fate| match fate {
                Fate::Accepted(packet) => Some(&packet.row),
                _ => None,
            })
            .collect()
    }

    /// The rows of the duplicates and conflicts that are to be stored too, in order: see [`Cycle`](crate::cycle::Cycle) for why.
    pub fn copies(&self) -> Vec<&Row> {
        self.fates
            .iter()
            .filter_map(|fate| match fate {
                Fate::Duplicate { packet, first: true } | Fate::Conflict { packet, first: true, .. } => {
                    Some(&packet.row)
                }
                _ => None,
            })
            .collect()
    }

    /// Turns accepted packets whose row was refused into rejections, and with them their duplicates in this batch; `outcomes` answer
    /// [`Plan::rows`] one by one.
    pub fn settle(&mut self, outcomes: Vec<RowOutcome>) {
        let mut refused: HashMap<u128, Rejection> = HashMap::new();
        let mut outcomes = outcomes.into_iter();
        for fate in &mut self.fates {
            let rejection = match fate {
                Fate::Accepted(packet) => match outcomes.next() {
                    Some(RowOutcome::Refused { detail, attempts }) => {
                        let rejection = Rejection { reason: DlqReason::StoreRejected, detail, attempts };
                        refused.insert(packet.entry.key, rejection.clone());
                        rejection
                    }
                    _ => continue,
                },
                // What it duplicates was not accepted after all.
                Fate::Duplicate { packet, .. } => match refused.get(&packet.entry.key) {
                    Some(rejection) => rejection.clone(),
                    None => continue,
                },
                // Its row would be one of a packet that was not accepted.
                Fate::Conflict { packet, rejection, .. } if refused.contains_key(&packet.entry.key) => {
                    rejection.clone()
                }
                Fate::Conflict { .. } | Fate::Rejected(_) => continue,
            };
            *fate = Fate::Rejected(rejection);
        }
    }

    /// Lets the next copy of the same topic take the place of one whose row was refused: where that topic was read first, it did so too.
    /// `outcomes` answer [`Plan::copies`] one by one.
    pub fn settle_copies(&mut self, outcomes: Vec<RowOutcome>) {
        let mut outcomes = outcomes.into_iter();
        for fate in &mut self.fates {
            if let Fate::Duplicate { first, .. } | Fate::Conflict { first, .. } = fate
                && *first
            {
                *first = !matches!(outcomes.next(), Some(RowOutcome::Refused { .. }));
            }
        }
    }

    /// The fates in the records' order.
    pub fn fates(&self) -> &[Fate] {
        &self.fates
    }

    /// By source, the entries of the packets that were accepted and of those that are the first copies of their topic.
    pub fn entries<'a>(&self, batch: &'a Batch) -> BTreeMap<&'a TopicPartition, Vec<Entry>> {
        let mut entries: BTreeMap<_, Vec<Entry>> = BTreeMap::new();
        for (record, fate) in batch.records().iter().zip(&self.fates) {
            if let Fate::Accepted(packet)
            | Fate::Duplicate { packet, first: true }
            | Fate::Conflict { packet, first: true, .. } = fate
            {
                entries.entry(&record.source).or_default().push(packet.entry);
            }
        }
        entries
    }
}

fn expire(record: &Record, expired_before_ms: Option<i64>) -> Option<Rejection> {
    let before = expired_before_ms?;
    let timestamp = record.timestamp_ms.filter(|timestamp| *timestamp < before)?;
    let age = before - timestamp;
    Some(Rejection::new(
        DlqReason::Expired,
        format!("{age} ms past the maximum age while the backlog was over its threshold"),
    ))
}

fn conflict(packet: &Packet) -> Rejection {
    let detail = format!("packet id {} was accepted before with other content", packet.row.packet_id);
    Rejection::new(DlqReason::IdConflict, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::MAX_TOPICS;
    use coderelay_schemas::headers::{CHECKED, CHECKED_GZIP};
    use coderelay_schemas::pb::CodePacket;
    use prost::Message as _;

    fn packet(key: u128, content: &'static [u8]) -> Packet {
        let row = Row {
            repo_id: "repo".into(),
            packet_id: coderelay_schemas::packet_id::PacketId([key as u8; 16]),
            content: content.into(),
            metadata: BTreeMap::new(),
            created_at_ms: 0,
            ingested_at_ms: 0,
            region: None,
        };
        Packet { entry: Entry { key, fingerprint: content[0].into() }, row }
    }

    /// A batch of records that only have a place, one after the other in a partition of `topics`.
    fn batch(topics: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for (offset, topic) in (0..).zip(topics) {
            let source = TopicPartition::new(*topic, 3);
            let headers = crate::record::Headers::default();
            batch.push(Record { source, offset, timestamp_ms: None, key: None, value: None, headers });
        }
        batch
    }

    fn plan(batch: &Batch, memory: &Memory, packets: &[Packet]) -> Result<Plan, TooManyTopics> {
        let mut plan = Plan { fates: packets.iter().map(|packet| Fate::Accepted(Box::new(packet.clone()))).collect() };
        plan.judge(batch, memory)?;
        Ok(plan)
    }

    fn memory() -> Memory {
        Memory::new(1000, std::time::Duration::from_secs(3600))
    }

    /// A record as ingest writes it, of a packet that is known by `id`.
    fn record(id: u8, content: &'static [u8], offset: i64, timestamp_ms: i64) -> Record {
        let content = content.into();
        let packet =
            CodePacket { repo_id: "r".into(), packet_id: vec![id; 16].into(), content, ..CodePacket::default() };
        let mut headers = crate::record::Headers::default();
        headers.push(CHECKED, Some(CHECKED_GZIP.as_bytes()));
        let (source, key, value) = (TopicPartition::new("t", 0), Some("r".into()), Some(packet.encode_to_vec().into()));
        Record { source, offset, timestamp_ms: Some(timestamp_ms), key, value, headers }
    }

    #[test]
    fn what_comes_again_in_the_batch_and_is_young_does_not_expire() {
        let mut batch = Batch::default();
        batch.push(record(1, b"one", 0, 100));
        batch.push(record(2, b"two", 1, 100));
        batch.push(record(1, b"six", 2, 900));
        let plan = Plan::of(&batch, &memory(), &PacketLimits::default(), Some(500)).unwrap();
        assert!(matches!(
            plan.fates(),
            [
                Fate::Accepted(first),
                Fate::Rejected(Rejection { reason: DlqReason::Expired, .. }),
                Fate::Conflict { .. }
            ] if first.row.content == "one"
        ));
        // When all copies are old, all expire.
        let plan = Plan::of(&batch, &memory(), &PacketLimits::default(), Some(1_000)).unwrap();
        assert!(plan.rows().is_empty());
    }

    const STORED: RowOutcome = RowOutcome::Stored;

    fn refused() -> RowOutcome {
        RowOutcome::Refused { detail: "too large".into(), attempts: 2 }
    }

    #[test]
    fn the_first_copy_of_every_topic_is_stored_and_entered_in_the_ledger() {
        let (east, west) = ("code.packets.v1", "eu-west.code.packets.v1");
        let batch = batch(&[east, east, west, west, west, east]);
        let contents = [b"one", b"two", b"six", b"one", b"two", b"six"];
        let packets: Vec<_> = contents.iter().map(|content| packet(1, *content)).collect();
        let memory = memory();
        let mut plan = plan(&batch, &memory, &packets).unwrap();
        plan.settle(vec![STORED]);
        assert_eq!(plan.rows(), [&packets[0].row]);
        assert_eq!(plan.copies(), [&packets[2].row]);
        plan.settle_copies(vec![STORED]);

        let entries: Vec<_> =
            plan.entries(&batch).into_iter().map(|(source, entries)| (&*source.topic, entries)).collect();
        let accepted = vec![packets[0].entry];
        assert_eq!(
            entries,
            [(east, accepted.clone()), (west, accepted)],
            "also where the first copy has other content"
        );
        for (topic, accepted) in entries {
            memory.publish(3, topic, &accepted);
        }
        let later = self::plan(&batch, &memory, &packets).unwrap();
        assert!(later.rows().is_empty() && later.copies().is_empty() && later.entries(&batch).is_empty());
    }

    #[test]
    fn records_of_a_topic_too_many_are_not_judged() {
        let topics: Vec<_> = (0..=MAX_TOPICS).map(|n| format!("region-{n}.code.packets.v1")).collect();
        let batch = batch(&topics.iter().map(String::as_str).collect::<Vec<_>>());
        let packets: Vec<_> = (0..topics.len()).map(|n| packet(n as u128, b"one")).collect();
        let refused = plan(&batch, &memory(), &packets).unwrap_err().to_string();
        assert!(refused.starts_with(&topics[MAX_TOPICS]), "{refused}");
    }

    #[test]
    fn a_copy_that_is_refused_leaves_its_place_to_the_next() {
        let batch = batch(&["code.packets.v1", "eu-west.code.packets.v1"]);
        let packets = [packet(1, b"one"), packet(1, b"two")];
        let mut plan = plan(&batch, &memory(), &packets).unwrap();
        plan.settle(vec![STORED]);
        plan.settle_copies(vec![refused()]);
        let sources: Vec<_> = plan.entries(&batch).into_keys().collect();
        assert_eq!(sources, [&batch.records()[0].source]);
    }

    #[test]
    fn with_a_packet_that_is_refused_its_duplicates_and_copies_are() {
        let (east, west) = ("code.packets.v1", "eu-west.code.packets.v1");
        let batch = batch(&[east, east, west, west]);
        let packets = [packet(1, b"one"), packet(1, b"one"), packet(1, b"one"), packet(1, b"two")];
        let mut plan = plan(&batch, &memory(), &packets).unwrap();
        plan.settle(vec![refused()]);
        assert!(plan.copies().is_empty() && plan.entries(&batch).is_empty());
        let reason = |fate: &Fate| match fate {
            Fate::Rejected(rejection) => rejection.reason,
            other => panic!("{other:?}"),
        };
        let reasons: Vec<_> = plan.fates().iter().map(reason).collect();
        let rejected = DlqReason::StoreRejected;
        assert_eq!(reasons, [rejected, rejected, rejected, DlqReason::IdConflict]);
    }
}
