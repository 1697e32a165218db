//! The store and the broker go away and come back. Each test breaks a stack of its own.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "it/support.rs"]
mod support;

use std::time::Duration;

use coderelay_devstack::Stack;
use support::{World, batch, eventually};

async fn own_stack() -> &'static Stack {
    let stack = Stack::builder().brokers(1).cql(true).start().await.unwrap();
    // As long as the test process: the stack dies with it.
    Box::leak(Box::new(stack))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_store_and_broker_loses_and_dead_letters_nothing() {
    let stack = own_stack().await;
    let world = World::on(stack).await;
    let (records, ids) = batch(0..3000);
    let chunks: Vec<_> = records.chunks(1000).collect();
    // Every other transaction is open for a while before its end, so that the broker dies in the middle of some.
    let start = async || {
        let builder = world.processor("a").set("batch.max_records", 100).set("cql.request_timeout", "2s");
        builder.failpoints("before-end-txn=50%sleep(200)").ready().await
    };
    let processor = start().await;
    world.produce(chunks[0]);

    // The store is gone for 30 s: readiness says so, the group stays, nothing is dead-lettered.
    stack.cql().kill().await.unwrap();
    world.produce(chunks[1]);
    eventually("the processor notices that the store is away", async || processor.process.is_ready().await.is_err())
        .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(processor.process.is_running(), "{}", processor.process.log_tail(50));
    stack.cql().restart().await.unwrap();
    world.settled().await;
    processor.process.ready().await.unwrap();
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);

    // The store hangs: it accepts connections and answers nothing.
    stack.cql().pause().await.unwrap();
    world.produce(chunks[2]);
    eventually("the processor notices that the store hangs", async || processor.process.is_ready().await.is_err())
        .await;
    stack.cql().resume().await.unwrap();
    world.settled().await;

    // The broker is gone in the middle of transactions, then comes back with its log.
    let (more, more_ids) = batch(3000..5000);
    world.produce(&more);
    eventually("some of it is under way", async || world.lag().await < 1900).await;
    stack.broker(0).kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    stack.broker(0).restart().await.unwrap();
    // Everything once more: the memory has survived all of it.
    world.produce(&records);
    world.produce(&more);
    world.settled().await;

    // Stopped while the store is away: it leaves in time and without error, and forgets nothing.
    stack.cql().kill().await.unwrap();
    let (last, last_ids) = batch(5000..5500);
    world.produce(&last);
    eventually("the processor notices that the store is away", async || processor.process.is_ready().await.is_err())
        .await;
    processor.stop().await;
    stack.cql().restart().await.unwrap();
    let processor = start().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&[ids, more_ids, last_ids].concat()).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}

/// Fails under `CODERELAY_FLAW=reuse-producer`.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_answered_late_is_not_made_twice() {
    let world = World::on(own_stack().await).await;
    let (records, ids) = batch(0..300);
    let processor = world.processor("a").set("group.workers", 1).set("group.transaction_timeout", "40s");
    let processor = processor
        .set("group.session_timeout", "40s")
        .set("batch.linger", "2s")
        .failpoints("before-end-txn=1*sleep(4000)")
        .ready()
        .await;
    world.produce(&records);
    let produced = async || world.uncommitted(&world.topics.deduped).len() == 300;
    eventually("it has produced its batch", produced).await;
    let broker = world.stack().broker(0);
    broker.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    broker.resume().await.unwrap();
    world.settled().await;
    world.assert_exactly_once(&ids).await;
    processor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_written_when_the_store_went_away_does_not_expire_meanwhile() {
    let stack = own_stack().await;
    let world = World::on(stack).await;
    let (records, _) = batch(0..200);
    let settings = [("expiry.enabled", "true"), ("expiry.backlog", "0"), ("expiry.max_age", "15s")];
    let builder =
        world.processor("a").set("group.workers", 1).set("batch.max_records", 50).set("cql.request_timeout", "2s");
    let builder = builder.set("kafka.statistics_interval", "100ms");
    let processor = settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value)).ready().await;
    stack.cql().kill().await.unwrap();
    world.produce(&records);
    eventually("the processor notices that the store is away", async || processor.process.is_ready().await.is_err())
        .await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    stack.cql().restart().await.unwrap();
    world.settled().await;
    processor.stop().await;
    // The batch in hand is stored, as was decided when it was young. What came behind it is too old by then.
    let (stored, published) = (world.rows().await.len(), world.committed(&world.topics.deduped).len());
    assert!(stored > 0);
    assert_eq!((published, world.committed(&world.topics.dlq).len()), (stored, 200 - stored));
}
