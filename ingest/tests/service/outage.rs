//! Kafka away: bounded memory, errors that say when to come back, and recovery.

use std::time::Duration;

use coderelay_devstack::Stack;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchRequest, PublishResult};
use coderelay_schemas::topics::TopicNames;
use tonic::Code;

use crate::world::{World, committed, eventually, is_committed, packets, places, reason, refusal};

/// What `ingest` may use at most with its default budget, in MiB.
const MEMORY: u64 = 256;

/// Publishes batches, each a new connection's first, and returns their results.
async fn hammer(world: &World, batches: usize, name: &str) -> Vec<PublishResult> {
    let batch = |n: usize| {
        let mut client = None;
        async move {
            let client = client.get_or_insert(world.client().await);
            // Noise, 3 KiB each: 6 MiB a batch.
            let packets = packets(&format!("{name} {n} {}", noise(3072)), 2000);
            let response = client.publish_batch(PublishBatchRequest { packets }).await;
            response.map(|response| response.into_inner().results).unwrap_or_default()
        }
    };
    futures::future::join_all((0..batches).map(batch)).await.concat()
}

fn noise(length: usize) -> String {
    (0..length).map(|_| char::from(rand::random_range(b' '..=b'~'))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_costs_neither_memory_nor_packets() {
    let stack = Stack::builder().start().await.unwrap();
    let settings = ["producer.message_timeout=5s", "admission.max_wait=1s", "kafka.properties.socket.timeout.ms=3000"];
    let world = World::on(&stack, &settings).await;
    committed(&hammer(&world, 1, "before").await[0]);

    stack.broker(0).pause().await.unwrap();
    let results = hammer(&world, 40, "away").await;
    assert_eq!(results.len(), 40 * 2000, "every packet is answered");
    let mut reasons = std::collections::BTreeSet::new();
    for result in &results {
        if matches!(result.outcome, Some(Outcome::Error(_))) {
            let (code, details) = refusal(result);
            assert!(matches!(code, Code::ResourceExhausted | Code::Unavailable), "{code:?}");
            assert!(details.retry_info().is_some());
            reasons.insert(reason(&details).to_owned());
        }
    }
    assert!(reasons.contains("ADMISSION_EXHAUSTED") && reasons.contains("KAFKA_UNAVAILABLE"), "{reasons:?}");
    assert!(world.peak_memory() < MEMORY, "{} MiB", world.peak_memory());

    stack.broker(0).resume().await.unwrap();
    let mut last = Vec::new();
    eventually("packets are taken again", async || {
        last = hammer(&world, 1, "after").await;
        last.iter().all(is_committed)
    })
    .await;
    let stored = places(&world.records().await);
    for result in results.iter().chain(&last) {
        if let Some(Outcome::Committed(place)) = &result.outcome {
            let id = stored[&(place.partition, place.offset)];
            assert_eq!(id.to_bytes(), result.packet_id);
        }
    }
    assert!(world.process.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_is_waited_for() {
    let stack = Stack::builder().start().await.unwrap();
    let world = World::on(&stack, &[]).await;
    stack.broker(0).kill().await.unwrap();
    let mut client = world.client().await;
    let waiting = tokio::spawn(async move {
        let batch = PublishBatchRequest { packets: packets("patient", 100) };
        client.publish_batch(batch).await.unwrap().into_inner().results
    });
    eventually("readiness says so", async || world.ready().await == 503).await;
    stack.broker(0).restart().await.unwrap();
    for result in waiting.await.unwrap() {
        committed(&result);
    }
    eventually("readiness is back", async || world.ready().await == 200).await;
    assert_eq!(world.records().await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_the_world_starts_and_waits() {
    let stack = Stack::builder().start().await.unwrap();
    stack.broker(0).pause().await.unwrap();
    let topics = TopicNames::default();
    let world = World::launch(&stack, &topics, &["producer.message_timeout=1s"]);
    eventually("the admin port answers", async || world.ready().await == 503).await;
    let (code, details) = refusal(&world.publish(packets("early", 1)).await[0]);
    assert_eq!((code, reason(&details)), (Code::Unavailable, "KAFKA_UNAVAILABLE"));
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    assert!(world.process.terminate().await.unwrap().success());
}
