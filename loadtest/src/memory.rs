//! What the processor's memory of accepted ids costs: bytes an id, and CPU to publish and to judge one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use nix::time::{ClockId, clock_gettime};
use processor::dedup::{Judgement, Memory};
use procfs::process::Process;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::machine::Origin;
use crate::summary::{SCHEMA, Summary};

/// Ids of one ledger partition in one transaction.
const BATCH: u64 = 400;
/// The processor's default.
const WINDOW: Duration = Duration::from_secs(3600);
/// Ids that are asked for.
const JUDGED: u64 = 1_000_000;

/// Fills a memory with `ids` ids and asks it for some of them. Blocks for some seconds.
///
/// # Errors
/// When `/proc` cannot be read, or the memory does not know what it was told.
pub fn measure(ids: u64) -> Result<Summary> {
    let (started, clock) = (OffsetDateTime::now_utc(), Instant::now());
    let memory = Memory::new(ids, WINDOW);
    let before = resident()?;
    let publishing = walk(ids, |partition, batch| {
        memory.publish(partition, PACKETS, batch);
        Ok(())
    })?;
    let bytes = resident()?.saturating_sub(before);
    ensure!((memory.len(), memory.evicted_early()) == (ids, 0), "{} of {ids} ids are remembered", memory.len());
    let topic = memory.topic(PACKETS)?;
    let judging = |first: u64, expected: Judgement| {
        let took = walk(ids.min(JUDGED), |partition, batch| {
            let batch: Vec<_> = batch.iter().map(|entry| (topic, id(entry.fingerprint + first))).collect();
            let right = memory.judge(partition, &batch).iter().all(|judgement| *judgement == expected);
            ensure!(right, "an id was not judged {expected:?}");
            Ok(())
        })?;
        Ok::<_, anyhow::Error>(per_second(ids.min(JUDGED), took))
    };
    let mut summary = Summary {
        schema: SCHEMA,
        scenario: "dedup-memory".to_owned(),
        description: format!("The processor's memory of {ids} accepted ids, alone on one thread"),
        started: started.format(&Rfc3339)?,
        origin: Origin::here()?,
        configuration: serde_json::json!({ "ids": ids, "partitions": PARTITIONS, "ids_per_batch": BATCH }),
        ..Summary::default()
    };
    summary.figures.extend(
        [
            ("ids_remembered", ids as f64),
            ("bytes_per_id", bytes as f64 / ids as f64),
            ("publish_ids_per_cpu_s", per_second(ids, publishing)),
            ("judge_new_ids_per_cpu_s", judging(ids, Judgement::New)?),
            ("judge_duplicate_ids_per_cpu_s", judging(0, Judgement::Duplicate { first: false })?),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    summary.seconds = clock.elapsed().as_secs_f64();
    Ok(summary)
}

/// Hands out `ids` ids in batches, partition after partition. The CPU time it took, which a busy machine does not change.
fn walk(ids: u64, mut visit: impl FnMut(i32, &[Entry]) -> Result<()>) -> Result<Duration> {
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let started = cpu()?;
    let mut batch = Vec::new();
    for (first, partition) in (0..ids).step_by(BATCH as usize).zip((0..PARTITIONS).cycle()) {
        batch.clear();
        batch.extend((first..ids.min(first + BATCH)).map(id));
        visit(partition, &batch)?;
    }
    Ok(cpu()?.saturating_sub(started))
}

/// The entry of packet `n`: like a hash, every bit of its key is as good as any other.
fn id(n: u64) -> Entry {
    let mix = |n: u64| {
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    };
    Entry { key: u128::from(mix(n)) << 64 | u128::from(mix(!n)), fingerprint: n }
}

fn per_second(ids: u64, took: Duration) -> f64 {
    ids as f64 / took.as_secs_f64().max(1e-9)
}

fn resident() -> Result<u64> {
    Ok(Process::myself()?.statm()?.resident * procfs::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_is_known_and_what_was_not_is_new() {
        let summary = measure(10_000).unwrap();
        assert!((summary.figures["ids_remembered"] - 10_000.0).abs() < 0.5);
        assert!(summary.figures["judge_new_ids_per_cpu_s"] > 0.0);
    }
}
