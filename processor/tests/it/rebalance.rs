//! Two processors, either joining and leaving mid-stream.

use std::time::Duration;

use crate::support::{World, batch};

#[tokio::test(flavor = "multi_thread")]
async fn processors_join_and_leave_mid_stream_and_every_packet_comes_out_once() {
    let world = World::new().await;
    let (records, ids) = batch(0..4000);
    let chunks: Vec<_> = records.chunks(1000).collect();
    let small = |instance| world.processor(instance).set("batch.max_records", 40);

    let a = small("a").ready().await;
    world.produce(chunks[0]);
    let b = small("b").ready().await;
    world.produce(chunks[1]);
    a.stop().await;
    world.produce(chunks[2]);
    // Static members keep their partitions until the session times out; then the other one takes over.
    world.settled().await;
    let a = small("a").ready().await;
    world.produce(chunks[3]);
    b.process.kill().await.unwrap();
    // Every packet once more, partly before and partly after the partitions have moved.
    world.produce(&records);
    world.settled().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.stop().await;
    world.assert_exactly_once(&ids).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}
