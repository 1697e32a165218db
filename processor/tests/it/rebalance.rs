//! Two processors, either joining and leaving mid-stream.

use crate::support::{World, batch, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn processors_join_and_leave_mid_stream_and_every_packet_comes_out_once() {
    let world = World::new().await;
    let (records, ids) = batch(0..4000);
    let chunks: Vec<_> = records.chunks(1000).collect();
    // Slow enough that every join and leave finds work under way.
    let small = |instance| world.processor(instance).set("batch.max_records", 40).set("pace.ceiling", 200);
    let worked = async |processor| world.metric(processor, "coderelay_processor_records_total", "").await > 0.0;

    let a = small("a").ready().await;
    world.produce(chunks[0]);
    let b = small("b").ready().await;
    world.produce(chunks[1]);
    eventually("both have worked", async || worked(&a).await && worked(&b).await).await;
    assert!(world.lag().await > 0);
    a.stop().await;
    world.produce(chunks[2]);
    // Static members keep their partitions until the session times out; then the other one takes over.
    world.settled().await;
    let a = small("a").ready().await;
    world.produce(chunks[3]);
    eventually("the newcomer has worked", async || worked(&a).await).await;
    b.process.kill().await.unwrap();
    // Every packet once more, partly before and partly after the partitions have moved.
    world.produce(&records);
    world.settled().await;
    a.stop().await;
    world.assert_exactly_once(&ids).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}
