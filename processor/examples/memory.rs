//! Measures the memory of accepted ids: bytes an id, and the CPU that publishing and judging cost.
//!
//! `cargo run --release -p processor --example memory -- [ids] [partitions]` prints one `name value` a line.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::time::Duration;

use coderelay_schemas::ledger::Entry;
use processor::dedup::{Judgement, Memory};
use procfs::process::Process;

/// Ids of one ledger partition in one transaction.
const BATCH: u64 = 400;
const WINDOW: Duration = Duration::from_secs(3600);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let ids: u64 = arguments.next().unwrap_or(10_000_000);
    let partitions: u64 = arguments.next().unwrap_or(12);
    let memory = Memory::new(ids, WINDOW);
    let before = resident();
    let took = walk(ids, partitions, |partition, batch| memory.publish(partition, batch));
    assert_eq!((memory.len(), memory.evicted_early()), (ids, 0));
    println!("ids {ids}");
    println!("bytes_per_id {:.1}", (resident() - before) as f64 / ids as f64);
    println!("peak_bytes_per_id {:.1}", (peak() - before) as f64 / ids as f64);
    println!("publish_ids_per_cpu_second {:.0}", ids as f64 / took.as_secs_f64());
    for (name, first, expected) in [("new", ids, Judgement::New), ("duplicate", 0, Judgement::Duplicate)] {
        let asked = ids.min(1_000_000);
        let took = walk(asked, partitions, |partition, batch| {
            let batch: Vec<Entry> = batch.iter().map(|entry| id(entry.fingerprint + first)).collect();
            assert!(memory.judge(partition, &batch).iter().all(|judgement| *judgement == expected));
        });
        println!("judge_{name}_ids_per_cpu_second {:.0}", asked as f64 / took.as_secs_f64());
    }
}

/// Hands out `ids` ids in batches, partition after partition. The CPU time it took, which a busy machine does not change.
fn walk(ids: u64, partitions: u64, mut visit: impl FnMut(i32, &[Entry])) -> Duration {
    let started = cpu();
    let mut batch = Vec::new();
    for (number, first) in (0..ids).step_by(BATCH as usize).enumerate() {
        let partition = (number as u64 % partitions) as i32;
        batch.clear();
        batch.extend((first..ids.min(first + BATCH)).map(id));
        visit(partition, &batch);
    }
    cpu().saturating_sub(started)
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

fn cpu() -> Duration {
    let stat = Process::myself().unwrap().stat().unwrap();
    Duration::from_secs(stat.utime + stat.stime) / procfs::ticks_per_second() as u32
}

fn resident() -> u64 {
    Process::myself().unwrap().statm().unwrap().resident * procfs::page_size()
}

fn peak() -> u64 {
    Process::myself().unwrap().status().unwrap().vmhwm.unwrap() * 1024
}
