//! Transactions whose end nobody knows for a while. Each of these tests fails under the flaw that it names, as `CODERELAY_FLAW`.

use std::time::Duration;

use crate::support::{World, batch, eventually};

/// `remember-before-commit`
#[tokio::test(flavor = "multi_thread")]
async fn what_a_timed_out_transaction_accepted_is_published_by_the_next() {
    let world = World::new().await;
    let (records, ids) = batch(0..300);
    world.produce(&records);
    let processor = world.processor("a").set("group.workers", 1).failpoints("before-end-txn=1*sleep(9000)");
    let processor = processor.ready().await;
    world.settled().await;
    world.assert_exactly_once(&ids).await;
    assert!(processor.process.log_tail(200).contains("starting over"), "{}", processor.process.log_tail(60));
    processor.stop().await;
}

/// `replay-before-offsets`
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_process_still_commits_is_known_to_its_successor() {
    let world = World::new().await;
    let (records, ids) = batch(0..300);
    world.produce(&records);
    let frozen = world.processor("a").set("group.workers", 1).set("batch.linger", "2s");
    // It does not live to join again, whereupon the ledger would be replayed once more.
    let frozen = frozen.failpoints("before-end-txn=1*sleep(4000);after-commit=return");
    let frozen = frozen.set("group.transaction_timeout", "40s").start();
    let produced = async || world.uncommitted(&world.topics.deduped).len() == 300;
    eventually("it has produced its batch", produced).await;
    frozen.process.pause().await.unwrap();

    let successor = world.processor("b").set("group.workers", 1).ready().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    frozen.process.resume().await.unwrap();
    eventually("it has committed", async || !frozen.process.is_running()).await;
    assert_eq!(world.uncommitted(&world.topics.deduped).len(), 300, "nobody else has published");
    world.produce(&records);
    world.settled().await;
    world.assert_exactly_once(&ids).await;
    successor.stop().await;
}
