//! Offsets that are pending and of no transaction: a stray request of KIP-890's kind, on brokers that do not verify it (before 3.8, or
//! told not to).

use std::time::Duration;

use coderelay_devstack::{Action, Api, Rule, Stack};

use crate::support::{World, batch, eventually};

/// Until the stray request arrives. By then the transaction that it was made for has long been committed.
const LATE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_a_stray_request_has_left_pending_are_let_go_by_the_next_start() {
    let stack = Stack::builder().cql(true).linked(true);
    let stack = stack.broker_property("transaction.partition.verification.enable", "false").start().await.unwrap();
    let world = World::on(Box::leak(Box::new(stack))).await;
    let processor = || {
        let processor = world.processor("a").set("group.workers", 1);
        processor.set("kafka.bootstrap_servers", world.stack().linked_servers())
    };
    let (records, ids) = batch(0..300);
    let first = processor().ready().await;
    let stray = world.stack().intercept(Rule::once(Api::TxnOffsetCommit, Action::Stray(LATE)));
    world.produce(&records[..200]);
    world.settled().await;
    assert_eq!(stray.hits(), 1);
    eventually("the group's offsets are pending for ever", async || world.lag().await == i64::MAX).await;
    first.process.kill().await.unwrap();

    let second = processor().ready().await;
    world.produce(&records);
    world.settled().await;
    second.stop().await;
    world.assert_exactly_once(&ids).await;
}
