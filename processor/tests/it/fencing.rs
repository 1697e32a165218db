//! Zombies, and two processes with one identity.

use std::time::Duration;

use crate::support::{World, batch, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_changes_nothing() {
    let world = World::new().await;
    let (records, ids) = batch(0..300);
    world.produce(&records);
    // Everything is produced and the offsets are sent; only the commit is missing.
    let zombie = world.processor("a").set("group.workers", 1).set("batch.linger", "2s");
    let zombie = zombie.failpoints("before-end-txn=1*sleep(4000)").start();
    let produced = async || world.uncommitted(&world.topics.deduped).len() == 300;
    eventually("the zombie has produced its batch", produced).await;
    assert_eq!(world.committed(&world.topics.deduped).len(), 0);
    zombie.process.pause().await.unwrap();

    let successor = world.processor("b").set("group.workers", 1).ready().await;
    world.settled().await;
    world.assert_exactly_once(&ids).await;
    let published = world.uncommitted(&world.topics.deduped).len();
    assert!(published > 300, "the zombie's records are in the log too: {published}");

    zombie.process.resume().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.produce(&records);
    world.settled().await;
    world.assert_exactly_once(&ids).await;
    assert!(zombie.process.log_tail(200).contains("starting over"), "{}", zombie.process.log_tail(60));
    zombie.stop().await;
    successor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processors_with_one_identity_one_says_why_and_stops() {
    let world = World::new().await;
    let (records, ids) = batch(0..500);
    let first = world.processor("same").ready().await;
    world.produce(&records[..250]);
    let second = world.processor("same").start();
    world.produce(&records[250..]);

    eventually("one of the two has stopped", async || !first.process.is_running() || !second.process.is_running())
        .await;
    let (stopped, running) = if first.process.is_running() { (&second, &first) } else { (&first, &second) };
    let status = stopped.process.wait().await;
    assert_eq!(status.code(), Some(1));
    let log = stopped.process.log_tail(200);
    assert!(log.contains("needs an `instance` of its own"), "{log}");

    world.settled().await;
    world.produce(&records);
    world.settled().await;
    assert!(running.process.is_running(), "the other one goes on");
    running.stop().await;
    world.assert_exactly_once(&ids).await;
}
