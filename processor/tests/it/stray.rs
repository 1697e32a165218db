//! Requests that reach a broker after their time, over a connection that their client has given up: what KIP-890 is about, and what librdkafka
//! does not protect from.

use std::time::Duration;

use coderelay_devstack::{Action, Api, Rule, Stack};

use crate::support::{ProcessorBuilder, World, batch, eventually};

fn processor(world: &World) -> ProcessorBuilder<'_> {
    let processor = world.processor("a").set("group.workers", 1).set("batch.max_records", 50);
    processor.set("kafka.bootstrap_servers", world.stack().linked_servers())
}

#[allow(clippy::unwrap_used, reason = "a test")]
async fn world() -> World {
    let stack = Stack::builder().cql(true).linked(true).start().await.unwrap();
    World::on(Box::leak(Box::new(stack))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_late_ends_no_other_transaction() {
    let world = world().await;
    let (records, ids) = batch(0..600);
    // librdkafka commits once more after 100 ms and says nothing of it; the next transaction then publishes for 200 ms.
    let late = Action::Stray(Duration::from_millis(250));
    let strays = [2, 5, 8].map(|skip| world.stack().intercept(Rule { skip, ..Rule::once(Api::EndTxn, late) }));
    world.produce(&records);
    let processor = processor(&world).failpoints("after-publish=sleep(4)").ready().await;
    world.settled().await;
    assert_eq!(strays.map(|stray| stray.hits()), [1; 3]);
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}

/// On brokers that do not verify such a request: those before 3.8, or told not to.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_a_stray_request_has_left_pending_are_let_go_by_the_next_start() {
    let stack = Stack::builder().cql(true).linked(true);
    let stack = stack.broker_property("transaction.partition.verification.enable", "false").start().await.unwrap();
    let world = World::on(Box::leak(Box::new(stack))).await;
    let (records, ids) = batch(0..300);
    // One transaction for all: another one would have the broker know the request for what it is.
    let first = processor(&world).set("batch.max_records", 1000).set("batch.linger", "1s").ready().await;
    // By then the transaction that it was made for has long been committed.
    let late = Action::Stray(Duration::from_secs(4));
    let stray = world.stack().intercept(Rule::once(Api::TxnOffsetCommit, late));
    world.produce(&records[..200]);
    world.settled().await;
    assert_eq!(stray.hits(), 1);
    eventually("the group's offsets are pending for ever", async || world.lag().await == i64::MAX).await;
    first.process.kill().await.unwrap();

    let second = processor(&world).ready().await;
    world.produce(&records);
    world.settled().await;
    second.stop().await;
    world.assert_exactly_once(&ids).await;
}

/// Twice in a row: by its predecessor's transaction, and by that with which the next one lets go of what is pending.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_never_answered_for_do_not_stop_a_worker() {
    let world = world().await;
    let (records, ids) = batch(0..300);
    let never = Action::DelayResponse(Duration::from_secs(600));
    let unanswered = world.stack().intercept(Rule { times: 2, ..Rule::once(Api::TxnOffsetCommit, never) });
    world.produce(&records);
    let processor = processor(&world).ready().await;
    world.settled().await;
    assert_eq!(unanswered.hits(), 2);
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}
