//! Kafka away: bounded memory, errors that say when to come back, and recovery.

use std::time::Duration;

use coderelay_devstack::Stack;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchRequest, PublishResult};
use tonic::Code;

use crate::world::{Service, World, committed, eventually, is_committed, packets, places, reason, records, refusal};

/// What `ingest` may use at most with its default budget, in MiB.
const MEMORY: u64 = 256;

/// Publishes batches, each a new connection's first, and returns their results.
async fn hammer(service: &Service, batches: usize, name: &str) -> Vec<PublishResult> {
    let batch = |n: usize| {
        let mut client = None;
        async move {
            let client = client.get_or_insert(service.client().await);
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
    let service = Service::start(&stack, &settings).await;
    committed(&hammer(&service, 1, "before").await[0]);

    stack.broker(0).pause().await.unwrap();
    let results = hammer(&service, 40, "away").await;
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
    assert!(service.peak_memory() < MEMORY, "{} MiB", service.peak_memory());

    stack.broker(0).resume().await.unwrap();
    let mut last = Vec::new();
    eventually("packets are taken again", async || {
        last = hammer(&service, 1, "after").await;
        last.iter().all(is_committed)
    })
    .await;
    let stored = places(&records(&stack.bootstrap_servers(), &service.topics.packets).await);
    for result in results.iter().chain(&last) {
        if let Some(Outcome::Committed(place)) = &result.outcome {
            let id = stored[&(place.partition, place.offset)];
            assert_eq!(id.to_bytes(), result.packet_id);
        }
    }
    assert!(service.process.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_is_waited_for() {
    let stack = Stack::builder().start().await.unwrap();
    let world = World::on(&stack, |_| {}).await;
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
async fn without_kafka_the_service_starts_and_waits() {
    let stack = Stack::builder().start().await.unwrap();
    stack.broker(0).pause().await.unwrap();
    let mut config = ingest::config::IngestConfig::default();
    config.kafka.bootstrap_servers = stack.bootstrap_servers();
    config.producer.message_timeout = "1s".parse().unwrap();
    config.grpc.listen.set_port(coderelay_devstack::free_port().unwrap());
    config.admin.listen.set_port(coderelay_devstack::free_port().unwrap());
    let shutdown = coderelay_runtime::CancellationToken::new();
    let ended = tokio::spawn(ingest::run(config.clone(), shutdown.clone()));
    let world = World { bootstrap: stack.bootstrap_servers(), config, shutdown, ended };
    eventually("the admin port answers", async || world.ready().await == 503).await;
    let (code, details) = refusal(&world.publish(packets("early", 1)).await[0]);
    assert_eq!((code, reason(&details)), (Code::Unavailable, "KAFKA_UNAVAILABLE"));
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    world.shutdown.cancel();
    world.ended.await.unwrap().unwrap();
}
