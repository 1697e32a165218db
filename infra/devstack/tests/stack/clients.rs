//! Kafka and CQL as a test sees them from outside.

use std::error::Error;
use std::time::{Duration, Instant};

use coderelay_devstack::Stack;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, FutureProducer, FutureRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::Offset;
use rdkafka::{Message, TopicPartitionList};
use scylla::client::session_builder::SessionBuilder;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A producer that wants every in-sync replica's acknowledgement, and gives up after `timeout`.
pub(crate) fn producer(stack: &Stack, timeout: Duration) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", stack.bootstrap_servers())
        .set("acks", "all")
        .set("message.timeout.ms", timeout.as_millis().to_string())
        .create()
        .unwrap()
}

/// Writes `value` to partition 0; whether it was acknowledged.
pub(crate) async fn produce(stack: &Stack, topic: &str, value: &str) -> bool {
    produce_within(stack, topic, value, PATIENCE).await
}

pub(crate) async fn produce_within(stack: &Stack, topic: &str, value: &str, timeout: Duration) -> bool {
    let record = FutureRecord::<(), _>::to(topic).partition(0).payload(value);
    producer(stack, timeout).send(record, timeout).await.is_ok()
}

/// A producer of transactions that comes over the link.
pub(crate) fn transactional(stack: &Stack) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.linked_servers()).set("transactional.id", "test");
    let producer: ThreadedProducer<_> = config.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

/// Begins a transaction and writes `value` to partition 0 in it.
pub(crate) fn begin(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, value: &str) {
    producer.begin_transaction().unwrap();
    let record = BaseRecord::<(), _>::to(topic).partition(0).payload(value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

/// Reads the first `count` committed records of partition 0.
pub(crate) async fn consume(stack: &Stack, topic: &str, count: usize) -> Vec<String> {
    let (servers, topic) = (stack.bootstrap_servers(), topic.to_owned());
    let read = move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("group.id", "test").set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut values = Vec::new();
        while values.len() < count && Instant::now() < deadline {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                values.push(String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned());
            }
        }
        values
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Runs a statement; how many rows it yields.
pub(crate) async fn query(stack: &Stack, statement: &str) -> usize {
    try_query(stack, statement).await.unwrap()
}

/// The same where it may be refused.
pub(crate) async fn try_query(stack: &Stack, statement: &str) -> Result<usize, Box<dyn Error>> {
    let session = Box::pin(SessionBuilder::new().known_node(stack.cql_contact()).build()).await?;
    let result = session.query_unpaged(statement, ()).await?;
    Ok(result.into_rows_result().map_or(0, |rows| rows.rows_num()))
}
