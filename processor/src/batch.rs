//! The records of one turn and what becomes of each.

use std::collections::{BTreeMap, HashMap, HashSet};

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::validate::PacketLimits;

use crate::decode::{Packet, Rejection, Row, decode};
use crate::dedup::{Judgement, Memory};
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
    Duplicate(Box<Packet>),
    /// Seen before with other content: dead-lettered.
    Conflict(Box<Packet>, Rejection),
    /// Dead-lettered.
    Rejected(Rejection),
}

/// The fates of a batch's records, in their order.
#[derive(Debug)]
pub struct Plan {
    fates: Vec<Fate>,
}

impl Plan {
    /// Decides over every record of `batch`. Records with a timestamp before `expired_before_ms` are expired.
    pub fn of(batch: &Batch, memory: &Memory, limits: &PacketLimits, expired_before_ms: Option<i64>) -> Self {
        let fate = |record| match expire(record, expired_before_ms) {
            Some(rejection) => Fate::Rejected(rejection),
            None => decode(record, limits).map_or_else(Fate::Rejected, |packet| Fate::Accepted(Box::new(packet))),
        };
        let mut plan = Self { fates: batch.records().iter().map(fate).collect() };
        plan.judge(batch, memory);
        plan
    }

    /// Takes duplicates and conflicts out of the accepted packets, partition by partition.
    fn judge(&mut self, batch: &Batch, memory: &Memory) {
        let mut judgements: BTreeMap<i32, _> = self
            .entries(batch)
            .into_iter()
            .map(|(partition, entries)| (partition, memory.judge(partition, &entries).into_iter()))
            .collect();
        let judged = std::mem::take(&mut self.fates).into_iter().zip(batch.records()).map(|(fate, record)| {
            let Fate::Accepted(packet) = fate else { return fate };
            match judgements.get_mut(&record.source.partition).and_then(Iterator::next) {
                Some(Judgement::Duplicate) => Fate::Duplicate(packet),
                Some(Judgement::Conflict) => {
                    let rejection = conflict(&packet);
                    Fate::Conflict(packet, rejection)
                }
                Some(Judgement::New) | None => Fate::Accepted(packet),
            }
        });
        self.fates = judged.collect();
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

    /// The rows of other copies of packets that were accepted: duplicates and conflicts from partitions for which `several` holds, in
    /// order. See [`Cycle`](crate::cycle::Cycle) for when they are stored too.
    pub fn copies(&self, batch: &Batch, several: impl Fn(i32) -> bool) -> Vec<&Row> {
        batch
            .records()
            .iter()
            .zip(&self.fates)
            .filter_map(|(record, fate)| match fate {
                Fate::Duplicate(packet) | Fate::Conflict(packet, _) => {
                    several(record.source.partition).then_some(&packet.row)
                }
                Fate::Accepted(_) | Fate::Rejected(_) => None,
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
                Fate::Duplicate(packet) => match refused.get(&packet.entry.key) {
                    Some(rejection) => rejection.clone(),
                    None => continue,
                },
                // Its row would be one of a packet that was not accepted.
                Fate::Conflict(packet, rejection) if refused.contains_key(&packet.entry.key) => rejection.clone(),
                Fate::Conflict(..) | Fate::Rejected(_) => continue,
            };
            *fate = Fate::Rejected(rejection);
        }
    }

    /// The fates in the records' order.
    pub fn fates(&self) -> &[Fate] {
        &self.fates
    }

    /// The entries of accepted packets by partition.
    pub fn entries(&self, batch: &Batch) -> BTreeMap<i32, Vec<Entry>> {
        let mut entries: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
        for (record, fate) in batch.records().iter().zip(&self.fates) {
            if let Fate::Accepted(packet) = fate {
                entries.entry(record.source.partition).or_default().push(packet.entry);
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

    fn packet(key: u128, content: &'static [u8]) -> Box<Packet> {
        let row = Row {
            repo_id: "repo".into(),
            packet_id: coderelay_schemas::packet_id::PacketId([key as u8; 16]),
            content: content.into(),
            metadata: BTreeMap::new(),
            created_at_ms: 0,
            ingested_at_ms: 0,
            region: None,
        };
        Box::new(Packet { entry: Entry { key, fingerprint: content[0].into() }, row })
    }

    /// A batch of records that only have a place, from one partition.
    fn batch(records: usize) -> Batch {
        let mut batch = Batch::default();
        for offset in 0..records {
            let source = TopicPartition::new("code.packets.v1", 3);
            let offset = offset as i64;
            let headers = crate::record::Headers::default();
            batch.push(Record { source, offset, timestamp_ms: None, key: None, value: None, headers });
        }
        batch
    }

    #[test]
    fn copies_are_stored_where_their_packet_was_accepted_and_several_topics_feed_the_partition() {
        let conflicting = |key| Fate::Conflict(packet(key, b"other"), conflict(&packet(key, b"other")));
        let fates = vec![
            Fate::Accepted(packet(1, b"one")),
            Fate::Duplicate(packet(1, b"one")),
            conflicting(1),
            Fate::Accepted(packet(2, b"two")),
            Fate::Duplicate(packet(2, b"two")),
            conflicting(2),
        ];
        let mut plan = Plan { fates };
        let refused = RowOutcome::Refused { detail: "too large".into(), attempts: 2 };
        plan.settle(vec![RowOutcome::Stored, refused]);

        let batch = batch(6);
        let copies: Vec<_> =
            plan.copies(&batch, |partition| partition == 3).iter().map(|row| &row.content[..]).collect();
        assert_eq!(copies, [b"one".as_slice(), b"other"]);
        assert!(plan.copies(&batch, |_| false).is_empty());
        let reason = |fate: &Fate| match fate {
            Fate::Rejected(rejection) => rejection.reason,
            other => panic!("{other:?}"),
        };
        let reasons: Vec<_> = plan.fates()[3..].iter().map(reason).collect();
        assert_eq!(reasons, [DlqReason::StoreRejected, DlqReason::StoreRejected, DlqReason::IdConflict]);
    }
}
