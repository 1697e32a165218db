//! Whether a topic's copy in another region is what a mirror promises: every record at least once, as it was and in order.

use std::collections::HashSet;

use super::topic::{Content, Record};

/// Partitions of which the distinct records are not the same, where `in_order` in the same order, each with the number of those of either.
pub fn differences(source: &[Vec<Record>], copies: &[Vec<Record>], in_order: bool) -> Vec<(usize, usize, usize)> {
    let partitions = source.iter().zip(copies).enumerate();
    let differing = partitions.filter_map(|(partition, (source, copies))| {
        let (source, copies) = (distinct(source), distinct(copies));
        let same = if in_order { source == copies } else { set(&source) == set(&copies) };
        (!same).then_some((partition, source.len(), copies.len()))
    });
    differing.collect()
}

fn set<'a>(records: &[Content<'a>]) -> HashSet<Content<'a>> {
    records.iter().copied().collect()
}

/// Without what was there before.
fn distinct(records: &[Record]) -> Vec<Content<'_>> {
    let mut seen = HashSet::new();
    records.iter().map(Record::content).filter(|content| seen.insert(*content)).collect()
}
