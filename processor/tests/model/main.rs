//! The cycle against a simulated Kafka and store, through random schedules of crash, abort, indefinite commit, late markers, time-outs,
//! rebalances, split assignments, expiry and interleaved processes. After every turn: no id in a memory that is not committed. At the
//! end: every packet out exactly once, and in the store the row that the first copies of all topics make, in whatever order those were read.
//!
//! `MODEL_SCHEDULES` sets how many schedules, and `MODEL_SEED` the first one's seed.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a test")]

mod broker;
mod check;
mod driver;
mod ports;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use driver::{Flaw, run};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// The choices of a random schedule.
fn schedule(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut choices = vec![0; random.random_range(0..1200)];
    random.fill(&mut choices[..]);
    choices
}

/// What is wrong after a schedule, if anything. A panic is wrong, too.
fn violation(choices: &[u8], flaw: Flaw) -> Option<String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(choices, flaw)));
    outcome.unwrap_or_else(|_| Err("a panic".into())).err()
}

/// The first seed found whose schedule ends wrong, sought on every core.
fn find(seeds: Range<u64>, flaw: Flaw) -> Option<u64> {
    let (next, found) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let search = || {
        while found.load(Ordering::Relaxed) == u64::MAX {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if violation(&schedule(seed), flaw).is_some() {
                found.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(search);
        }
    });
    Some(found.into_inner()).filter(|seed| *seed != u64::MAX)
}

/// Leaves out of a schedule, and makes harmless, whatever it goes wrong without.
fn shrink(mut choices: Vec<u8>, flaw: Flaw) -> Vec<u8> {
    let mut width = choices.len();
    while width > 0 {
        let mut at = 0;
        while at < choices.len() {
            let mut shorter = choices.clone();
            shorter.drain(at..choices.len().min(at + width));
            match violation(&shorter, flaw) {
                Some(_) => choices = shorter,
                None => at += width,
            }
        }
        width /= 2;
    }
    for at in 0..choices.len() {
        let choice = std::mem::take(&mut choices[at]);
        if violation(&choices, flaw).is_none() {
            choices[at] = choice;
        }
    }
    choices
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn every_packet_comes_out_exactly_once_under_every_schedule() {
    let first = variable("MODEL_SEED", 0);
    if let Some(seed) = find(first..first + variable("MODEL_SCHEDULES", 100_000), Flaw::None) {
        let choices = shrink(schedule(seed), Flaw::None);
        let violation = violation(&choices, Flaw::None).unwrap();
        panic!("MODEL_SEED={seed} MODEL_SCHEDULES=1: {violation}\nafter {choices:?}");
    }
}

/// Whether one of some thousand random schedules finds a deliberate flaw.
fn catches(flaw: Flaw) -> bool {
    find(0..20_000, flaw).is_some()
}

#[test]
fn the_model_catches_a_replay_that_is_left_out() {
    assert!(catches(Flaw::NoReplay));
}

#[test]
fn the_model_catches_a_replay_that_does_not_wait_for_markers_under_way() {
    assert!(catches(Flaw::ReplayWithoutWaiting));
}

#[test]
fn the_model_catches_a_ledger_that_is_read_before_the_offsets_are_stable() {
    assert!(catches(Flaw::UnstableOffsets));
}

#[test]
fn the_model_catches_a_broker_that_fences_no_generation() {
    assert!(catches(Flaw::NoFencing));
}

#[test]
fn the_model_catches_a_store_in_which_the_last_write_wins_whatever_its_time() {
    assert!(catches(Flaw::IgnoredWriteTimes));
}

#[test]
fn the_model_catches_a_ledger_that_does_not_tell_in_which_topic_an_id_was_seen() {
    assert!(catches(Flaw::UnnamedTopics));
}

#[test]
fn the_model_catches_clocks_that_run_back_where_records_expire() {
    assert!(catches(Flaw::ClocksRunBack));
}

#[test]
fn the_model_catches_members_that_read_the_same_partition_of_two_topics_at_once() {
    assert!(catches(Flaw::NothingWithheld));
}

/// Those of the cycle are chosen by the environment, for a process.
#[cfg(feature = "flaws")]
#[test]
fn the_model_catches_every_flaw_of_the_cycle() {
    use coderelay_runtime::flaw::Flaw::{
        NoReplay, OffsetsBeforeStore, RememberBeforeCommit, ReplayBeforeOffsets, ReuseProducer,
    };

    for flaw in [RememberBeforeCommit, OffsetsBeforeStore, NoReplay, ReplayBeforeOffsets, ReuseProducer] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_packet_comes_out_exactly_once_under_every_schedule"])
            .envs([("CODERELAY_FLAW", flaw.to_string()), ("MODEL_SCHEDULES", "20000".into())])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains("MODEL_SEED="), "{flaw}: {said}");
    }
}
