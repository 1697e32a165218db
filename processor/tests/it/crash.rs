//! `kill -9` at each edge of the cycle, by failpoints.

use crate::support::{World, batch};

/// Crashes a processor at `failpoint` in its second batch, starts another in its place and checks that nothing shows.
async fn crash_at(failpoint: &str) -> World {
    let world = World::new().await;
    let (records, ids) = batch(0..400);
    world.produce(&records);
    let failpoints = format!("{failpoint}=1*off->return");
    world.processor("a").set("group.workers", 1).set("batch.max_records", 150).failpoints(&failpoints).crashes().await;
    let before = world.rows().await;
    assert!(before.len() >= 150, "the first batch was stored: {}", before.len());

    let processor = world.processor("a").set("group.workers", 1).ready().await;
    world.settled().await;
    // Once more, so that a gap in the memory would show as a double.
    world.produce(&records);
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
    let after = world.rows().await;
    assert!(before.iter().all(|(id, written)| after[id] == *written), "rows did not change");
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_poll_loses_nothing() {
    crash_at("after-poll").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_store_and_transaction_leaves_rows_that_do_not_change() {
    crash_at("after-store").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_begin_loses_nothing() {
    crash_at("after-begin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_two_records_that_are_published_loses_nothing() {
    crash_at("after-publish").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_offsets_are_sent_loses_nothing() {
    crash_at("before-send-offsets").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_commit_leaves_aborted_records_that_nobody_sees() {
    let world = crash_at("before-end-txn").await;
    let (all, visible) = (world.uncommitted(&world.topics.deduped), world.committed(&world.topics.deduped));
    assert_eq!(visible.len(), 400);
    assert!(all.len() > visible.len(), "the crashed batch is in the log: {} records", all.len());
    let (all, visible) = (world.uncommitted(&world.topics.ledger), world.committed(&world.topics.ledger));
    assert!(all.len() > visible.len(), "its ledger entries are too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_just_after_the_commit_repeats_nothing() {
    crash_at("after-commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_replay_forgets_nothing() {
    let world = World::new().await;
    let (records, ids) = batch(0..200);
    world.produce(&records);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.processor("a").failpoints("during-replay=return").crashes().await;
    world.produce(&records);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_takes_over_from_a_crashed_one() {
    let world = World::new().await;
    let (records, ids) = batch(0..400);
    world.produce(&records);
    world.processor("a").set("batch.max_records", 100).failpoints("before-end-txn=1*off->return").crashes().await;
    let processor = world.processor("b").ready().await;
    world.settled().await;
    world.produce(&records);
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}
