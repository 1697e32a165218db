//! The stack is real, and its nodes can be treated badly.

use coderelay_devstack::Stack;
use coderelay_schemas::topics::TopicNames;
use std::time::Instant;

#[tokio::test]
async fn starts() {
    let since = Instant::now();
    let stack = Stack::builder()
        .cql(true)
        .brokers(3)
        .observer(coderelay_devstack::Observer::new(move |e| eprintln!("{:?} {e:?}", since.elapsed())))
        .start()
        .await
        .unwrap();
    eprintln!("{} {}", stack.bootstrap_servers(), stack.cql_contact());
    let since = Instant::now();
    stack.create_topics(&TopicNames::with_suffix(".x"), 12).await.unwrap();
    stack.create_topics(&TopicNames::with_suffix(".x"), 12).await.unwrap();
    eprintln!("topics {:?}", since.elapsed());
    let since = Instant::now();
    stack.create_keyspace("x").await.unwrap();
    stack.create_keyspace("x").await.unwrap();
    eprintln!("keyspace {:?}", since.elapsed());
    let since = Instant::now();
    stack.broker(0).kill().await.unwrap();
    stack.broker(0).restart().await.unwrap();
    eprintln!("kill, restart {:?}", since.elapsed());
    let since = Instant::now();
    stack.broker(0).restart().await.unwrap();
    eprintln!("restart {:?}", since.elapsed());
}
