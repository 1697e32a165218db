//! The audit finds what is planted on purpose, and nothing else: in histories made up at random, and on a real stack.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod history;
mod stack;

use coderelay_schemas::pb::Committed;
use loadtest::corpus::{Corpus, CorpusSpec};
use loadtest::summary::Audit;

/// Few repositories and short bursts, so that packets of one repository meet.
fn corpus(seed: u64) -> Corpus {
    let spec = CorpusSpec { seed, size: 256, repositories: 4, burst: 3, ..CorpusSpec::default() };
    Corpus::new(CorpusSpec { created_at_ms: Some(1_790_000_000_000), ..spec }).unwrap()
}

fn committed(partition: i32, offset: i64) -> Committed {
    Committed { topic: "code.packets.v1".into(), partition, offset }
}

/// The counts of a summary: lost, duplicated, altered, reordered, unsent, unacknowledged.
fn counts(audit: &Audit) -> [u64; 6] {
    [audit.lost, audit.duplicated, audit.altered, audit.reordered, audit.unsent, audit.unacknowledged]
}

/// Kind and id of every finding.
fn findings(audit: &Audit) -> Vec<(&str, String)> {
    audit.findings.iter().map(|finding| (finding.kind.as_str(), finding.packet_id.clone())).collect()
}

fn detail<'a>(audit: &'a Audit, kind: &str, packet_id: &str) -> &'a str {
    let found = audit.findings.iter().find(|finding| finding.kind == kind && finding.packet_id == packet_id);
    &found.unwrap_or_else(|| panic!("{packet_id} is not found to be {kind}: {audit:#?}")).detail
}
