//! What a demo run left behind in Kafka and CQL, counted there and compared with what was sent.
//!
//! Nothing here trusts the services' word: records are read back from the topics, rows from the table, and content is
//! unpacked and hashed again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use coderelay_schemas::headers::PACKET_ID;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::PacketLimits;
use comfy_table::{Cell, CellAlignment, Color};
use futures::TryStreamExt as _;
use prost::Message as _;
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};
use serde::Serialize;

use crate::connect::{Connection, REQUEST_TIMEOUT, url};
use crate::delivery::{Delivery, Manifest};
use crate::output::{Output, size};
use crate::packer::gunzip;
use crate::reader::{Offsets, Reader};
use crate::source::Source;
use crate::store::{Day, Store};

/// What was sent.
pub(crate) struct Run {
    pub(crate) repo_id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) sources: Arc<[Source]>,
    pub(crate) deliveries: Vec<Delivery>,
    /// One past the last acknowledged offset, by topic and partition.
    pub(crate) goal: BTreeMap<(String, i32), i64>,
    /// Acknowledged records the processor has not committed.
    pub(crate) behind: i64,
}

/// Where the topics ended before anything was sent.
pub(crate) struct Topics {
    packets: Offsets,
    deduped: Offsets,
    dlq: Offsets,
}

impl Topics {
    /// Blocks.
    pub(crate) fn mark(connection: &Connection) -> anyhow::Result<Self> {
        let names = connection.topics();
        let ends = |topic: &str| Reader::open(connection, topic)?.ends();
        Ok(Self { packets: ends(&names.packets)?, deduped: ends(&names.deduped)?, dlq: ends(&names.dlq)? })
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    what: String,
    found: String,
    expected: String,
    holds: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// The finished comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Evidence {
    repo_id: String,
    checks: Vec<Check>,
}

/// The packets of a run found in one topic.
#[derive(Default)]
struct Found {
    records: u64,
    bytes: u64,
    /// The sample's record, where it is and its value.
    sample: Option<(String, Vec<u8>)>,
}

/// The packets of a run found in the table.
#[derive(Default)]
struct Stored {
    rows: u64,
    raw_bytes: u64,
    /// Rows whose unpacked content has the hash of their file.
    intact: u64,
}

impl Evidence {
    /// Reads everything back. `counted` is the processor's count of duplicates before the run, where it told.
    pub(crate) async fn gather(
        run: &Run,
        before: &Topics,
        counted: Option<u64>,
        connection: &Connection,
    ) -> anyhow::Result<Self> {
        let sent: HashMap<PacketId, &Manifest> =
            run.deliveries[0].packed().map(|(_, manifest)| (manifest.id, manifest)).collect();
        // Of all files the median one: neither empty nor the odd giant.
        let mut by_size: Vec<_> = run.deliveries[0].packed().collect();
        by_size.sort_by_key(|(_, manifest)| manifest.raw_bytes);
        let sample = by_size.get(by_size.len() / 2).copied();
        let sample_id = sample.map(|(_, manifest)| manifest.id);

        let names = connection.topics();
        let (packets, deduped, dead) = tokio::task::block_in_place(|| {
            let read = |topic: &str, from: &Offsets| find(connection, topic, from, &sent, sample_id);
            anyhow::Ok((
                read(&names.packets, &before.packets)?,
                read(&names.deduped, &before.deduped)?,
                read(&names.dlq, &before.dlq)?,
            ))
        })?;
        let store = Store::connect(connection).await?;
        let day = Day::of(run.created_at);
        let stored = rows(&store, run, day, &sent).await?;

        let mut checks = counts(run, &sent, &packets, &deduped, &dead, &stored);
        let removed = packets.records.saturating_sub(deduped.records + dead.records);
        let expected = packets.records.saturating_sub(sent.len() as u64);
        checks.push(duplicates(removed, expected, counted, connection).await);
        checks.extend(sizes(&sent, &deduped, &stored));
        if let Some((tag, manifest)) = sample {
            let source = &run.sources[tag];
            let row = store.packet(&run.repo_id, day, manifest.id).await?;
            let row = row.map(|row| (format!("CQL, {day}"), row.content));
            checks.push(same_content("one packet from CQL", source, row)?);
            let record = deduped.sample.and_then(|(place, value)| {
                Some((
                    format!("{} {place}", names.deduped),
                    CodePacket::decode(value.as_slice()).ok()?.content.to_vec(),
                ))
            });
            checks.push(same_content("one packet from the topic", source, record)?);
        }
        Ok(Self { repo_id: run.repo_id.clone(), checks })
    }

    /// Whether every number is the expected one.
    pub(crate) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    /// The table, or its JSON.
    pub(crate) fn show(&self, output: &mut Output) -> io::Result<()> {
        if output.is_json() {
            return output.document(self);
        }
        let mut table = output.table();
        table.set_header(["", "found", "expected", "", ""]);
        for check in &self.checks {
            let (mark, colour) = if check.holds { ("✓", Color::Green) } else { ("✗", Color::Red) };
            table.add_row([
                Cell::new(&check.what),
                Cell::new(&check.found).set_alignment(CellAlignment::Right),
                Cell::new(&check.expected).set_alignment(CellAlignment::Right),
                Cell::new(mark).fg(colour),
                Cell::new(&check.note),
            ]);
        }
        output.say(&table.to_string())?;
        let failed = self.checks.iter().filter(|check| !check.holds).count();
        output.say(&match failed {
            0 => format!("{}: every packet was sent twice and stored once", self.repo_id),
            _ => format!("{}: {failed} of {} numbers are off", self.repo_id, self.checks.len()),
        })
    }
}

impl Check {
    fn equal(what: impl Into<String>, found: u64, expected: u64) -> Self {
        Self {
            what: what.into(),
            found: found.to_string(),
            expected: expected.to_string(),
            holds: found == expected,
            note: String::new(),
        }
    }

    fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

fn counts(
    run: &Run,
    sent: &HashMap<PacketId, &Manifest>,
    packets: &Found,
    deduped: &Found,
    dead: &Found,
    stored: &Stored,
) -> Vec<Check> {
    let distinct = sent.len() as u64;
    let skipped = run.deliveries[0].skipped().count() as u64;
    let passes = run.deliveries.iter().map(|delivery| delivery.packed().count() as u64);
    let receipts = || run.deliveries.iter().flat_map(|delivery| &delivery.receipts);
    let acknowledged = receipts().filter(|receipt| receipt.outcome.is_ok()).count() as u64;
    let again: u64 = receipts().map(|receipt| u64::from(receipt.attempts - 1)).sum();

    let files = Check::equal("files", run.deliveries[0].packed().count() as u64 + skipped, run.sources.len() as u64);
    let files = if skipped > 0 { files.note(format!("{skipped} of them skipped")) } else { files };
    let mut records = Check::equal("records in the packets topic", packets.records, acknowledged);
    if again > 0 {
        // A packet that was sent again may be in the log more than once: that is what the packet id is for.
        records.holds = packets.records >= acknowledged;
        records = records.note(format!("at least: {again} were sent again"));
    }
    let goal: u64 = run.goal.len() as u64;
    vec![
        files,
        Check::equal("packets sent, in two passes", passes.sum(), 2 * (run.sources.len() as u64 - skipped)),
        Check::equal("acknowledged", acknowledged, 2 * (run.sources.len() as u64 - skipped)),
        records,
        Check::equal("acknowledged, not yet processed", run.behind as u64, 0).note(format!("{goal} partitions")),
        Check::equal("rows in CQL", stored.rows, distinct),
        Check::equal("records in the deduped topic", deduped.records, distinct),
        Check::equal("dead letters", dead.records, 0),
    ]
}

/// Duplicates as the difference of what two topics hold, and the processor's own count beside it.
async fn duplicates(removed: u64, expected: u64, before: Option<u64>, connection: &Connection) -> Check {
    let check = Check::equal("duplicates removed", removed, expected);
    let Some(before) = before else { return check };
    // The processor counts after its commit returned, which may be a moment after the offsets are visible.
    let mut counted = 0;
    for _ in 0..20 {
        counted = duplicates_counted(connection).await.unwrap_or(before).saturating_sub(before);
        if counted >= removed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check.note(format!("the processor counted {counted}"))
}

fn sizes(sent: &HashMap<PacketId, &Manifest>, deduped: &Found, stored: &Stored) -> Vec<Check> {
    let total = |bytes: fn(&Manifest) -> u64| sent.values().map(|manifest| bytes(manifest)).sum::<u64>();
    let (raw, packet, json) = (total(|m| m.raw_bytes), total(|m| m.packet_bytes), total(|m| m.json_bytes));
    let ratio = |bytes: u64| bytes as f64 / packet.max(1) as f64;
    vec![
        Check::equal("contents in CQL with the file's hash", stored.intact, sent.len() as u64).note("BLAKE3, unpacked"),
        Check::equal("bytes, raw", stored.raw_bytes, raw).note(format!("{}, unpacked from CQL", size(raw))),
        Check::equal("bytes, as packets", deduped.bytes, packet)
            .note(format!("{}, read from the deduped topic", size(packet))),
        Check {
            what: "bytes, the same as JSON".to_owned(),
            found: json.to_string(),
            expected: format!("> {packet}"),
            holds: json > packet,
            note: format!("{}, {:.2} times the packets (base64)", size(json), ratio(json)),
        },
    ]
}

/// Compares unpacked content with the file as it is on disk now.
fn same_content(what: &str, source: &Source, found: Option<(String, Vec<u8>)>) -> anyhow::Result<Check> {
    let on_disk = std::fs::read(&source.file).with_context(|| source.file.display().to_string())?;
    let short = |hash: blake3::Hash| hash.to_hex()[..16].to_owned();
    let expected = blake3::hash(&on_disk);
    let Some((place, packed)) = found else {
        let note = format!("{} not found", source.label);
        return Ok(Check {
            what: what.to_owned(),
            found: "-".to_owned(),
            expected: short(expected),
            holds: false,
            note,
        });
    };
    let hash = gunzip(&packed, PacketLimits::default().expanded_max.as_u64()).map(|content| blake3::hash(&content));
    Ok(Check {
        what: what.to_owned(),
        found: hash.as_ref().map_or_else(ToString::to_string, |hash| short(*hash)),
        expected: short(expected),
        holds: hash.is_ok_and(|hash| hash == expected),
        note: format!("BLAKE3 of {} ({place})", source.label),
    })
}

/// Counts the run's packets in a topic from an offset to its end. Blocks.
fn find(
    connection: &Connection,
    topic: &str,
    from: &Offsets,
    sent: &HashMap<PacketId, &Manifest>,
    sample: Option<PacketId>,
) -> anyhow::Result<Found> {
    let reader = Reader::open(connection, topic)?;
    let mut found = Found::default();
    reader.read(from, Some(&reader.ends()?), |message| {
        let id = packet_id(message).filter(|id| sent.contains_key(id));
        if let Some(id) = id {
            let value = message.payload().unwrap_or_default();
            found.records += 1;
            found.bytes += value.len() as u64;
            if sample == Some(id) {
                found.sample = Some((format!("{}@{}", message.partition(), message.offset()), value.to_vec()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The record's packet id, from its header or else from its value.
fn packet_id(message: &BorrowedMessage<'_>) -> Option<PacketId> {
    let header = message.headers().and_then(|headers| headers.iter().find(|header| header.key == PACKET_ID));
    let text = header.and_then(|header| std::str::from_utf8(header.value?).ok()).map(str::to_owned);
    text.and_then(|text| text.parse().ok()).or_else(|| {
        let packet = CodePacket::decode(message.payload()?).ok()?;
        PacketId::from_slice(&packet.packet_id).ok()
    })
}

/// Counts the run's packets in the table, and checks every one's content.
async fn rows(store: &Store, run: &Run, day: Day, sent: &HashMap<PacketId, &Manifest>) -> anyhow::Result<Stored> {
    let limit = PacketLimits::default().expanded_max.as_u64();
    let mut stored = Stored::default();
    let mut rows = store.day(&run.repo_id, day).await?;
    while let Some(row) = rows.try_next().await? {
        let Some(manifest) = PacketId::from_slice(&row.packet_id).ok().and_then(|id| sent.get(&id)) else { continue };
        stored.rows += 1;
        if let Ok(content) = gunzip(&row.content, limit) {
            stored.raw_bytes += content.len() as u64;
            stored.intact += u64::from(blake3::hash(&content) == manifest.hash);
        }
    }
    Ok(stored)
}

/// How many duplicates the processor says it has dropped; none where its admin port does not answer.
pub(crate) async fn duplicates_counted(connection: &Connection) -> Option<u64> {
    let address = format!("{}/metrics", url(&connection.processor_admin).trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build().ok()?;
    let text = client.get(address).send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
    Some(duplicates_in(&text))
}

/// The processor's counter of records by outcome, in Prometheus' text format; 0 before the first duplicate.
fn duplicates_in(metrics: &str) -> u64 {
    let samples = metrics.lines().filter(|line| line.starts_with("coderelay_processor_records_total{"));
    let duplicates = samples.filter(|line| line.contains("outcome=\"duplicate\""));
    let values = duplicates.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use crate::output::tests::Captured;

    #[test]
    fn duplicates_are_found_among_the_metrics() {
        let metrics = "# TYPE coderelay_processor_records_total counter\n\
            coderelay_processor_records_total{outcome=\"accepted\"} 7\n\
            coderelay_processor_records_total{outcome=\"duplicate\",region=\"a\"} 3\n\
            coderelay_processor_records_total{outcome=\"duplicate\",region=\"b\"} 2\n";
        assert_eq!(duplicates_in(metrics), 5);
        assert_eq!(duplicates_in(""), 0);
    }

    #[test]
    fn one_number_that_is_off_is_marked_and_counted() {
        let checks = vec![Check::equal("rows in CQL", 9, 10), Check::equal("dead letters", 0, 0)];
        let evidence = Evidence { repo_id: "team/relay".into(), checks };
        assert!(!evidence.holds());
        let sink = Captured::default();
        evidence.show(&mut Output::to(Format::Table, sink.clone())).unwrap();
        let text = sink.text();
        assert!(text.contains('✗') && text.contains('✓'), "{text}");
        assert!(text.contains("1 of 2 numbers are off"), "{text}");
    }

    #[test]
    fn a_sample_is_compared_with_the_file_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "content").unwrap();
        let source = Source { label: "a".into(), file: file.clone() };
        let packed = crate::packer::tests::packer().pack(&source).unwrap();
        let found = || Some(("here".to_owned(), packed.packet.content.to_vec()));
        assert!(same_content("sample", &source, found()).unwrap().holds);
        assert!(!same_content("sample", &source, None).unwrap().holds);
        std::fs::write(&file, "changed").unwrap();
        assert!(!same_content("sample", &source, found()).unwrap().holds);
    }
}
