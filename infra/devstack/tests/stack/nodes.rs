//! One broker and Cassandra: they start, and can be killed, paused and started again.

use std::time::Duration;

use coderelay_devstack::{Stack, shared};
use coderelay_schemas::topics::TopicNames;
use tokio::time::timeout;

use crate::TURN;
use crate::clients::{consume, produce, produce_within, query, try_query};

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
async fn on_a_full_disk_servers_take_nothing_more_and_keep_what_they_had_acknowledged() {
    let _turn = TURN.lock().await;
    let stack = Stack::builder().cql(true).cql_setting("commitlog_segment_size", "1MiB").start().await.unwrap();
    let names = TopicNames::with_suffix("-full");
    stack.create_topics(&names, 1).await.unwrap();
    stack.create_keyspace("rows").await.unwrap();
    let (broker, store) = (stack.broker(0), stack.cql());
    broker.fill_disk().await.unwrap();
    store.fill_disk().await.unwrap();

    let value = "x".repeat(20_000);
    let mut records = 0;
    while produce_within(&stack, &names.packets, &value, Duration::from_secs(5)).await {
        records += 1;
        assert!(records < 4, "{records} records of 20 kB in 64 KiB");
    }
    let insert = |row: usize| {
        let content = "00".repeat(200_000);
        let columns = "repo_id, day, packet_id, content";
        format!("INSERT INTO rows.packets ({columns}) VALUES ('r', '2026-01-01', 0x{row:02x}, 0x{content})")
    };
    let mut rows = 0;
    while let Ok(Ok(_)) = timeout(Duration::from_secs(5), try_query(&stack, &insert(rows))).await {
        rows += 1;
        assert!(rows < 100, "{rows} rows of 200 kB in segments of 1 MiB");
    }

    for node in [broker, store] {
        node.kill().await.unwrap();
        node.restart().await.unwrap();
    }
    assert_eq!(consume(&stack, &names.packets, records).await, vec![value; records]);
    // One may have been written and not acknowledged.
    assert!(query(&stack, "SELECT packet_id FROM rows.packets").await >= rows);
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
