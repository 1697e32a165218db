//! What a demo run left behind in Kafka and CQL, compared with what was sent.
//!
//! Nothing here trusts the services' word: records are read back from the topics, rows from the table, and content is
//! unpacked and hashed again.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::PacketLimits;
use comfy_table::{Cell, CellAlignment, Color};
use prost::Message as _;
use serde::Serialize;

use crate::connect::Connection;
use crate::delivery::{Delivery, Manifest};
use crate::findings::{Before, Findings, Sent};
use crate::output::{Output, size};
use crate::packer::gunzip;
use crate::source::Source;
use crate::store::{Day, Store};

/// What was sent.
pub(crate) struct Run {
    pub(crate) repo_id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) sources: Arc<[Source]>,
    pub(crate) deliveries: Vec<Delivery>,
    /// Acknowledged records the processor has not committed.
    pub(crate) behind: i64,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    what: String,
    found: Figure,
    expected: Figure,
    holds: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// A number, or what cannot be one: a hash, a bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Figure {
    Number(u64),
    Text(String),
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// The finished comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Evidence {
    repo_id: String,
    checks: Vec<Check>,
}

impl Evidence {
    /// Reads everything back that was written since `before`.
    pub(crate) async fn gather(run: &Run, before: &Before, connection: &Connection) -> anyhow::Result<Self> {
        let sent: Sent<'_> = run.deliveries[0].packed().map(|(_, manifest)| (manifest.id, manifest)).collect();
        // Of all files the median one: neither empty nor the odd giant.
        let mut by_size: Vec<_> = run.deliveries[0].packed().collect();
        by_size.sort_by_key(|(_, manifest)| manifest.raw_bytes);
        let sample = by_size.get(by_size.len() / 2).copied();
        let sample_id = sample.map(|(_, manifest)| manifest.id);

        let store = Store::connect(connection).await?;
        let day = Day::of(run.created_at);
        let findings = Findings::gather((&run.repo_id, day), &sent, sample_id, before, &store, connection).await?;
        let mut checks = counts(run, &sent, &findings);
        checks.extend(sizes(&sent, &findings));
        if let Some((tag, manifest)) = sample {
            let source = &run.sources[tag];
            let row = store.packet(&run.repo_id, day, manifest.id).await?;
            let row = row.map(|row| (format!("CQL, {day}"), row.content));
            checks.push(same_content("one packet from CQL", source, row)?);
            let record = findings.deduped.sample.and_then(|(place, value)| {
                let place = format!("{} {place}", connection.topics().deduped);
                Some((place, CodePacket::decode(value.as_slice()).ok()?.content.to_vec()))
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
            found: Figure::Number(found),
            expected: Figure::Number(expected),
            holds: found == expected,
            note: String::new(),
        }
    }

    fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

fn counts(run: &Run, sent: &Sent<'_>, findings: &Findings) -> Vec<Check> {
    let Findings { packets, deduped, dead, stored, counted } = findings;
    let distinct = sent.len() as u64;
    let skipped = run.deliveries[0].skipped().count() as u64;
    let files = run.sources.len() as u64;
    let passes = run.deliveries.len() as u64;
    let packed: usize = run.deliveries.iter().map(|delivery| delivery.packed().count()).sum();
    let receipts = || run.deliveries.iter().flat_map(|delivery| &delivery.receipts);
    let acknowledged = receipts().filter(|receipt| receipt.outcome.is_ok()).count() as u64;
    let again: u64 = receipts().map(|receipt| u64::from(receipt.attempts - 1)).sum();

    let mut all_files = Check::equal("files", run.deliveries[0].packed().count() as u64 + skipped, files);
    if skipped > 0 {
        all_files = all_files.note(format!("{skipped} of them skipped"));
    }
    let mut records = Check::equal("records in the packets topic", packets.records, acknowledged);
    if again > 0 {
        // A packet that was sent again may be in the log more than once: that is what the packet id is for.
        records.holds = packets.records >= acknowledged;
        records = records.note(format!("at least: {again} were sent again"));
    }
    let removed = packets.records.saturating_sub(deduped.records + dead.records);
    let mut duplicates = Check::equal("duplicates removed", removed, packets.records.saturating_sub(distinct));
    if let Some(counted) = counted {
        duplicates = duplicates.note(format!("the processor counted {counted}"));
    }
    vec![
        all_files,
        Check::equal("packets sent, in two passes", packed as u64, passes * (files - skipped)),
        Check::equal("acknowledged", acknowledged, passes * (files - skipped)),
        records,
        Check::equal("acknowledged, not yet processed", run.behind as u64, 0),
        Check::equal("rows in CQL", stored.rows, distinct),
        duplicates,
        Check::equal("records in the deduped topic", deduped.records, distinct),
        Check::equal("dead letters", dead.records, 0),
    ]
}

fn sizes(sent: &Sent<'_>, Findings { deduped, stored, .. }: &Findings) -> Vec<Check> {
    let total = |bytes: fn(&Manifest) -> u64| sent.values().map(|manifest| bytes(manifest)).sum::<u64>();
    let (raw, packet, json) = (total(|m| m.raw_bytes), total(|m| m.packet_bytes), total(|m| m.json_bytes));
    let ratio = json as f64 / packet.max(1) as f64;
    vec![
        Check::equal("bytes, raw", stored.raw_bytes, raw).note(format!("{}, unpacked from CQL", size(raw))),
        Check::equal("bytes, as packets", deduped.bytes, packet)
            .note(format!("{}, read from the deduped topic", size(packet))),
        Check {
            what: "bytes, the same as JSON".to_owned(),
            found: Figure::Number(json),
            expected: Figure::Text(format!("> {packet}")),
            holds: json > packet,
            note: format!("{}, {ratio:.2} times the packets (base64)", size(json)),
        },
        Check::equal("contents in CQL as on disk", stored.intact, sent.len() as u64).note("BLAKE3 of every file"),
    ]
}

/// Compares unpacked content with the file as it is on disk now.
fn same_content(what: &str, source: &Source, found: Option<(String, Vec<u8>)>) -> anyhow::Result<Check> {
    let on_disk = std::fs::read(&source.file).with_context(|| source.file.display().to_string())?;
    let short = |hash: blake3::Hash| Figure::Text(hash.to_hex()[..16].to_owned());
    let expected = blake3::hash(&on_disk);
    let Some((place, packed)) = found else {
        let note = format!("{} not found", source.label);
        return Ok(Check {
            what: what.to_owned(),
            found: Figure::Text("-".to_owned()),
            expected: short(expected),
            holds: false,
            note,
        });
    };
    let hash = gunzip(&packed, PacketLimits::default().expanded_max.as_u64()).map(|content| blake3::hash(&content));
    Ok(Check {
        what: what.to_owned(),
        found: hash.as_ref().map_or_else(|error| Figure::Text(error.to_string()), |hash| short(*hash)),
        expected: short(expected),
        holds: hash.is_ok_and(|hash| hash == expected),
        note: format!("BLAKE3 of {} ({place})", source.label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use crate::output::tests::Captured;

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
