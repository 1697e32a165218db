//! What must hold of a schedule: after every turn, and at its end.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::validate::PacketLimits;
use processor::decode::{Row, decode};
use processor::dedup::{Judgement, Memory};
use processor::record::TopicPartition;

use crate::broker::State;
use crate::driver::Shared;

/// After every turn: no id in a memory that is not committed.
pub fn check_memory(shared: &Shared, memory: &Memory) -> Result<(), String> {
    let broker = shared.broker.borrow();
    for (source, entry) in shared.sent.borrow().iter() {
        let topic = memory.topic(&source.topic).unwrap();
        let judgement = memory.judge(source.partition, &[(topic, *entry)])[0];
        let remembered = matches!(judgement, Judgement::Duplicate { .. });
        if remembered && !broker.visible.contains(&(entry.key, entry.fingerprint)) {
            return Err(format!("{:x} is remembered but not committed", entry.key));
        }
    }
    Ok(())
}

pub fn key(row: &Row) -> (String, u128) {
    (row.repo_id.clone(), u128::from_be_bytes(*row.packet_id.as_bytes()))
}

/// What CQL makes of two writes of one row: the higher write timestamp wins, and in each column the larger value where they are equal.
pub fn merge(one: &Row, other: &Row) -> Row {
    match one.ingested_at_ms.cmp(&other.ingested_at_ms) {
        Ordering::Greater => one.clone(),
        Ordering::Less => other.clone(),
        Ordering::Equal => Row {
            content: one.content.clone().max(other.content.clone()),
            metadata: one.metadata.clone().max(other.metadata.clone()),
            created_at_ms: one.created_at_ms.max(other.created_at_ms),
            region: one.region.clone().max(other.region.clone()),
            ..one.clone()
        },
    }
}

/// At the end: every packet of which a record did not expire was published once, every conflict and every record that expired was
/// dead-lettered once, and the store and the ledger tell the same.
pub fn check(shared: &Shared) -> Result<(), String> {
    let broker = shared.broker.borrow();
    for (tp, log) in &broker.sources {
        let committed = broker.committed.get(tp).copied().unwrap_or(0);
        if committed as usize != log.len() {
            return Err(format!("{tp} stands at {committed} of {}", log.len()));
        }
    }
    let visible = || broker.txns.iter().filter(|txn| txn.state == State::Committed);
    let mut published: BTreeMap<u128, Vec<u64>> = BTreeMap::new();
    for (id, fingerprint) in visible().flat_map(|txn| txn.published.iter()) {
        published.entry(*id).or_default().push(*fingerprint);
    }
    let mut dead: BTreeMap<(TopicPartition, i64), Vec<DlqReason>> = BTreeMap::new();
    for (source, offset, reason) in visible().flat_map(|txn| txn.dead.iter()) {
        dead.entry((source.clone(), *offset)).or_default().push(*reason);
    }
    let mut merged: BTreeMap<(String, u128), Row> = BTreeMap::new();
    let mut expired: BTreeMap<(String, u128), Vec<Row>> = BTreeMap::new();
    let mut firsts: BTreeSet<(&str, u128)> = BTreeSet::new();
    for record in broker.sources.values().flatten() {
        let packet = decode(record, &PacketLimits::default()).map_err(|error| error.detail)?;
        let letters = dead.remove(&(record.source.clone(), record.offset)).unwrap_or_default();
        if shared.expires && letters == [DlqReason::Expired] {
            expired.entry(key(&packet.row)).or_default().push(packet.row);
            continue;
        }
        let times = published.get(&packet.entry.key).map_or(0, Vec::len);
        if times != 1 {
            return Err(format!("{:?} was published {times} times", packet.row.packet_id));
        }
        let conflicts = published[&packet.entry.key][0] != packet.entry.fingerprint;
        if letters != vec![DlqReason::IdConflict; usize::from(conflicts)] {
            return Err(format!("{}@{} was dead-lettered as {letters:?}", record.source, record.offset));
        }
        if firsts.insert((&record.source.topic, packet.entry.key)) {
            merged.entry(key(&packet.row)).and_modify(|row| *row = merge(row, &packet.row)).or_insert(packet.row);
        }
    }
    // Depends on the order within each topic, which a mirror keeps, and on none between them: it is the same in the other region.
    let mut rows = shared.rows.borrow().clone();
    // What expires after a crash between its row and its commit keeps its row until another copy is accepted.
    let left = |key: &(String, u128), row: &Row| expired.get(key).is_some_and(|records| records.contains(row));
    rows.retain(|key, row| merged.contains_key(key) || !left(key, row));
    if rows != merged {
        return Err(format!("the store has {rows:?} in place of {merged:?}"));
    }
    if published.len() != merged.len() {
        return Err("a packet was published of which every record expired".into());
    }
    let mut entries: Vec<(Arc<str>, u128)> = Vec::new();
    for (partition, slots) in &broker.ledger {
        for (topic, committed) in broker.committed_entries(*partition, 0, slots.len()) {
            if let Some(entry) = committed.iter().find(|entry| published[&entry.key] != [entry.fingerprint]) {
                return Err(format!("the ledger has other content of {:x} than was published", entry.key));
            }
            entries.extend(committed.iter().map(|entry| (Arc::clone(&topic), entry.key)));
        }
    }
    entries.sort();
    let once_a_topic = entries.iter().map(|(topic, id)| (&**topic, *id)).eq(firsts);
    if once_a_topic { Ok(()) } else { Err(format!("the ledger has {entries:?}")) }
}
