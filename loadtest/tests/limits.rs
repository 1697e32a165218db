//! The limits of a real broker and store.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::time::Duration;

use coderelay_devstack::{Stack, shared};
use loadtest::limits::{COST_OF_TRANSACTIONS, Span, Target, entry, measure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

fn topics(stack: &Stack) -> Vec<String> {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", stack.bootstrap_servers()).create().unwrap();
    let metadata = client.fetch_metadata(None, Duration::from_secs(10)).unwrap();
    metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_finds_every_limit_and_removes_its_topics() {
    let stack = shared().await;
    let target = Target {
        bootstrap_servers: stack.bootstrap_servers(),
        cql_contact: stack.cql_contact(),
        partitions: 3,
        replicas: 1,
        span: Span { warm_up: Duration::from_millis(50), measured: Duration::from_millis(200) },
    };
    let summary = measure(&target, |_| {}).await.unwrap();
    let names: Vec<_> = summary.rates.iter().map(|rate| rate.name.as_str()).collect();
    let expected = [
        entry::PRODUCE,
        entry::CONSUME,
        entry::TRANSACTIONS,
        entry::TRANSACTIONS_OFF,
        entry::CQL_SINGLE,
        entry::CQL_BATCH,
        entry::GZIP_VERIFY,
        entry::BLAKE3,
        entry::GRPC_ECHO,
        entry::GRPC_ECHO_SINGLE,
    ];
    assert_eq!(names, expected);
    assert!(summary.rates.iter().all(|rate| rate.per_second > 0.0), "{:?}", summary.rates);
    assert!(
        summary.figures.values().filter(|figure| **figure > 0.0).count() >= expected.len(),
        "{:?}",
        summary.figures
    );
    assert!(summary.figures.contains_key(COST_OF_TRANSACTIONS));

    // Deleting takes the broker a moment.
    for _ in 0..100 {
        if !topics(stack).iter().any(|topic| topic.contains("limits")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("left behind: {:?}", topics(stack));
}
