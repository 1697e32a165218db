//! Measures the replay of the ledger: writes entries to a real broker of its own, then reads them back into a memory as a worker does on
//! assignment.
//!
//! `cargo run --release -p processor --example replay -- [ids] [entries a record]` prints one `name value` a line.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use coderelay_devstack::{Jit, Stack};
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::topics::TopicNames;
use processor::dedup::Memory;
use processor::kafka::{Identity, KafkaLedger};
use processor::ports::Ledger;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 12;
const WINDOW: Duration = Duration::from_secs(3600);

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let ids: u64 = arguments.next().unwrap_or(5_000_000);
    let entries: u64 = arguments.next().unwrap_or(400);
    let stack = Stack::builder().jit(Jit::Full).start().await.unwrap();
    let topics = TopicNames::default();
    stack.create_topics(&topics, PARTITIONS).await.unwrap();
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", stack.bootstrap_servers());
    write(&client, &topics.ledger, ids, entries);

    let identity = Identity {
        client,
        group: "replay".into(),
        member: "replay-0".into(),
        sources: Vec::new(),
        topics,
        session_timeout: Duration::from_secs(30),
        transaction_timeout: Duration::from_secs(15),
        stop: CancellationToken::new(),
    };
    for _ in 0..3 {
        let memory = Memory::new(ids, WINDOW);
        let from: BTreeMap<i32, Option<i64>> = (0..PARTITIONS).map(|partition| (partition, None)).collect();
        let started = Instant::now();
        let mut ledger = KafkaLedger::new(&identity);
        ledger
            .replay(&from, UNIX_EPOCH, &mut |partition, topic, entries| memory.publish(partition, topic, entries))
            .unwrap();
        println!("replay_ids_per_second {:.0}", ids as f64 / started.elapsed().as_secs_f64());
        assert_eq!((memory.len(), memory.evicted_early()), (ids, 0));
    }
    stack.stop(Duration::from_secs(5)).await.unwrap();
}

/// Appends `ids` entries in records of `entries`, spread over the partitions.
fn write(client: &ClientConfig, topic: &str, ids: u64, entries: u64) {
    let producer: ThreadedProducer<_> = client.clone().set("linger.ms", "50").create().unwrap();
    for (number, first) in (0..ids).step_by(entries as usize).enumerate() {
        let value = ledger::encode((first..ids.min(first + entries)).map(|n| {
            // Like a hash, every bit as good as any other.
            let key = u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            Entry { key, fingerprint: n }
        }));
        let mut record: BaseRecord<'_, (), Vec<u8>> =
            BaseRecord::to(topic).partition((number % PARTITIONS as usize) as i32).payload(&value);
        while let Err((_, refused)) = producer.send(record) {
            record = refused;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}
