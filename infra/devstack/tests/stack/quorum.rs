//! Three brokers: one may be away, two may not.

use std::time::Duration;

use coderelay_devstack::Stack;
use coderelay_schemas::topics::TopicNames;

use crate::TURN;
use crate::clients::{consume, produce, produce_within};

#[tokio::test]
async fn one_of_three_brokers_may_be_away_and_two_may_not() {
    let _turn = TURN.lock().await;
    let stack = Stack::builder().brokers(3).start().await.unwrap();
    let names = TopicNames::default();
    stack.create_topics(&names, 3).await.unwrap();
    assert!(produce(&stack, &names.packets, "three").await);

    stack.broker(0).kill().await.unwrap();
    assert!(produce(&stack, &names.packets, "two").await);

    stack.broker(1).pause().await.unwrap();
    assert!(!produce_within(&stack, &names.packets, "one", Duration::from_secs(3)).await);

    stack.broker(1).resume().await.unwrap();
    stack.broker(0).restart().await.unwrap();
    for broker in stack.brokers() {
        broker.ready().await.unwrap();
    }
    assert!(produce(&stack, &names.packets, "again").await);
    // "one" was refused its acknowledgement; whether it was written is not told.
    let mut read = consume(&stack, &names.packets, 3).await;
    read.retain(|value| value != "one");
    assert_eq!(read[..2], ["three", "two"]);
}
