//! A transaction whose end goes astray between its producer and the broker.

use std::time::{Duration, Instant};

use coderelay_devstack::{Action, Api, Rule, Stack};
use coderelay_schemas::topics::TopicNames;
use rdkafka::producer::Producer;

use crate::TURN;
use crate::clients::{PATIENCE, begin, consume, produce, transactional};

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_commit_is_not_heard_of_is_committed_once() {
    let _turn = TURN.lock().await;
    let (stack, names) = (Stack::builder().linked(true).start().await.unwrap(), TopicNames::default());
    stack.create_topics(&names, 1).await.unwrap();
    let dropped = stack.intercept(Rule::once(Api::EndTxn, Action::DropResponse));

    let producer = transactional(&stack);
    begin(&producer, &names.packets, "once");
    producer.commit_transaction(PATIENCE).unwrap();

    assert_eq!(dropped.hits(), 1);
    assert!(produce(&stack, &names.packets, "end").await);
    assert_eq!(consume(&stack, &names.packets, 2).await, ["once", "end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_commit_ends_the_next_transaction() {
    const DELAY: Duration = Duration::from_secs(5);
    let _turn = TURN.lock().await;
    let (stack, names) = (Stack::builder().linked(true).start().await.unwrap(), TopicNames::default());
    stack.create_topics(&names, 1).await.unwrap();
    let stray = stack.intercept(Rule::once(Api::EndTxn, Action::Stray(DELAY)));

    let producer = transactional(&stack);
    begin(&producer, &names.packets, "once");
    let sent = Instant::now();
    // librdkafka connects again and sends another EndTxn, which passes.
    producer.commit_transaction(PATIENCE).unwrap();
    begin(&producer, &names.packets, "next");
    assert_eq!(stray.hits(), 1);
    assert!(sent.elapsed() < DELAY, "too slow: the stray commit came before the next transaction");

    // Its producer never commits it.
    assert_eq!(consume(&stack, &names.packets, 2).await, ["once", "next"]);
    assert!(sent.elapsed() >= DELAY);
}
