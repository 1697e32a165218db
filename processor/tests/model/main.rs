//! The cycle against a simulated Kafka and store, through random schedules of crash, abort, indefinite commit, late markers, time-outs,
//! rebalances and interleaved processes. After every turn: no id in a memory that is not committed. At the end: every packet out exactly
//! once, and in the store the row that the first copies of all topics make, in whatever order those were read. `PROPTEST_CASES` sets how many schedules.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a test")]

mod broker;
mod driver;
mod ports;

use driver::{Flaw, run};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(5_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_comes_out_exactly_once_under_every_schedule(choices in proptest::collection::vec(any::<u8>(), 0..1200)) {
        if let Err(violation) = run(&choices, Flaw::None) {
            prop_assert!(false, "{violation}");
        }
    }
}

/// How many random schedules it takes to find a deliberate flaw; `None` when none of 20,000 does.
fn schedules_until_caught(flaw: Flaw) -> Option<u64> {
    (0..20_000).find(|seed| {
        let mut random = StdRng::seed_from_u64(*seed);
        let length = random.random_range(200..1200);
        let choices: Vec<u8> = (0..length).map(|_| random.random()).collect();
        run(&choices, flaw).is_err()
    })
}

#[test]
fn the_model_catches_a_replay_that_is_left_out() {
    assert!(schedules_until_caught(Flaw::NoReplay).is_some());
}

#[test]
fn the_model_catches_a_replay_that_does_not_wait_for_markers_under_way() {
    assert!(schedules_until_caught(Flaw::ReplayWithoutWaiting).is_some());
}

#[test]
fn the_model_catches_a_ledger_that_is_read_before_the_offsets_are_stable() {
    assert!(schedules_until_caught(Flaw::UnstableOffsets).is_some());
}

#[test]
fn the_model_catches_a_broker_that_fences_no_generation() {
    assert!(schedules_until_caught(Flaw::NoFencing).is_some());
}

#[test]
fn the_model_catches_a_store_in_which_the_last_write_wins_whatever_its_time() {
    assert!(schedules_until_caught(Flaw::IgnoredWriteTimes).is_some());
}

#[test]
fn the_model_catches_a_ledger_that_does_not_tell_in_which_topic_an_id_was_seen() {
    assert!(schedules_until_caught(Flaw::UnnamedTopics).is_some());
}
