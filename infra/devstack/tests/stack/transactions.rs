//! Whether a transaction will be ended by anybody.

use coderelay_devstack::{HangingTransaction, Stack};
use coderelay_schemas::topics::TopicNames;

use crate::TURN;
use crate::clients::{begin, transactional};

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_hangs_when_its_coordinator_has_forgotten_it_and_not_before() {
    let _turn = TURN.lock().await;
    let (stack, names) = (Stack::builder().linked(true).start().await.unwrap(), TopicNames::default());
    stack.create_topics(&names, 1).await.unwrap();
    let producer = transactional(&stack);
    begin(&producer, &names.packets, "open");
    let topics = [names.packets.as_str(), names.deduped.as_str()];
    assert_eq!(stack.hanging_transactions(&topics).await.unwrap(), []);

    let broker = stack.broker(0);
    broker.kill().await.unwrap();
    for entry in std::fs::read_dir(broker.dir().join("data")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("__transaction_state-") {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    broker.restart().await.unwrap();

    let expected = HangingTransaction { topic: names.packets.clone(), partition: 0, start_offset: 0 };
    assert_eq!(stack.hanging_transactions(&topics).await.unwrap(), [expected]);
    drop(producer);
}
