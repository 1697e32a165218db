//! A stack in a folder of its own is taken up by the next, on whatever ports that finds free.

use std::time::Duration;

use coderelay_devstack::Stack;
use coderelay_schemas::topics::TopicNames;

use crate::TURN;
use crate::clients::{consume, produce, query};

#[tokio::test]
async fn data_is_there_after_a_stop() {
    let _turn = TURN.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let start = || async { Stack::builder().cql(true).dir(dir.path()).start().await.unwrap() };
    let names = TopicNames::default();

    let stack = start().await;
    stack.create_topics(&names, 1).await.unwrap();
    stack.create_keyspace("kept").await.unwrap();
    assert!(produce(&stack, &names.packets, "kept").await);
    let insert = "INSERT INTO kept.packets (repo_id, day, packet_id) VALUES ('r', '2026-01-01', 0x01)";
    query(&stack, insert).await;
    stack.stop(Duration::from_secs(60)).await.unwrap();
    assert!(stack.nodes().all(|node| !node.is_running()));
    drop(stack);

    let stack = start().await;
    assert_eq!(consume(&stack, &names.packets, 1).await, ["kept"]);
    assert_eq!(query(&stack, "SELECT repo_id FROM kept.packets").await, 1);
}
