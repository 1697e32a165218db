//! One broker and Cassandra: they start, and can be killed, paused and started again.

use std::time::Duration;

use coderelay_devstack::shared;
use coderelay_schemas::topics::TopicNames;

use crate::TURN;
use crate::clients::{consume, produce, produce_within, query};

#[tokio::test]
async fn records_survive_the_brokers_death() {
    let _turn = TURN.lock().await;
    let (stack, names) = (shared().await, TopicNames::with_suffix("-death"));
    stack.create_topics(&names, 2).await.unwrap();
    assert!(produce(stack, &names.packets, "before").await);

    let broker = stack.broker(0);
    let first = broker.pid();
    broker.kill().await.unwrap();
    assert!(!broker.is_running());
    broker.restart().await.unwrap();

    assert_ne!(broker.pid(), first);
    assert!(produce(stack, &names.packets, "after").await);
    assert_eq!(consume(stack, &names.packets, 2).await, ["before", "after"]);
}

#[tokio::test]
async fn a_paused_broker_is_silent_until_it_is_resumed() {
    let _turn = TURN.lock().await;
    let (stack, names) = (shared().await, TopicNames::with_suffix("-pause"));
    stack.create_topics(&names, 1).await.unwrap();

    stack.broker(0).pause().await.unwrap();
    assert!(stack.broker(0).is_running());
    assert!(!produce_within(stack, &names.packets, "lost", Duration::from_secs(2)).await);

    stack.broker(0).resume().await.unwrap();
    stack.broker(0).ready().await.unwrap();
    assert!(produce(stack, &names.packets, "heard").await);
}

#[tokio::test]
async fn rows_survive_the_servers_death() {
    let _turn = TURN.lock().await;
    let stack = shared().await;
    stack.create_keyspace("rows").await.unwrap();
    stack.create_keyspace("rows").await.unwrap();
    query(stack, "INSERT INTO rows.packets (repo_id, day, packet_id) VALUES ('r', '2026-01-01', 0x01)").await;

    stack.cql().kill().await.unwrap();
    stack.cql().restart().await.unwrap();

    assert_eq!(query(stack, "SELECT repo_id FROM rows.packets").await, 1);
}

#[tokio::test]
async fn the_largest_packet_fits_into_a_record() {
    let _turn = TURN.lock().await;
    let (stack, names) = (shared().await, TopicNames::with_suffix("-size"));
    stack.create_topics(&names, 1).await.unwrap();
    let value = "x".repeat(4 * 1024 * 1024 + 64 * 1024);
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", stack.bootstrap_servers()).set("message.max.bytes", "6291456");
    let producer: rdkafka::producer::FutureProducer = config.create().unwrap();
    let record = rdkafka::producer::FutureRecord::<(), _>::to(&names.packets).payload(&value);
    producer.send(record, Duration::from_secs(30)).await.unwrap();
}
