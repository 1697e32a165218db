//! The ledger read back from a real log, with its transactions' markers.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use coderelay_schemas::ledger::{self, Entry};
use processor::kafka::{Identity, KafkaLedger};
use processor::ports::Ledger;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_util::sync::CancellationToken;

use crate::support::{World, id_of, packet};

const PARTITION: i32 = 0;
const WAIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn it_is_read_as_far_as_it_was_said_to_go_although_fetches_may_end_before() {
    let world = World::new().await;
    let writer = Writer::new(&world);
    writer.write(1).commit_transaction(WAIT).unwrap();
    writer.write(2).abort_transaction(WAIT).unwrap();

    // An entry and a marker more than there are, as if the leader did not know of them yet.
    let mut ledger = KafkaLedger::new(&identity(&world));
    let reading = std::thread::spawn({
        let ledger = KafkaLedger::new(&identity(&world));
        move || collect(|visit| ledger.read(&BTreeMap::from([(PARTITION, (0, 6))]), visit))
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!reading.is_finished(), "it takes the end of a fetch for the end of the log");
    writer.write(3).commit_transaction(WAIT).unwrap();
    assert_eq!(reading.join().unwrap(), [entry(1), entry(3)]);

    // What ends in an aborted transaction is not waited for.
    writer.write(4).abort_transaction(WAIT).unwrap();
    let from = BTreeMap::from([(PARTITION, None)]);
    let mut ends = BTreeMap::new();
    let replayed = collect(|visit| {
        ends = ledger.replay(&from, SystemTime::UNIX_EPOCH, visit)?;
        Ok(())
    });
    assert_eq!(replayed, [entry(1), entry(3)]);
    assert_eq!(ends, BTreeMap::from([(PARTITION, 8)]));
}

/// Writes to the ledger in transactions that it leaves open.
struct Writer<'a> {
    world: &'a World,
    producer: BaseProducer,
}

impl<'a> Writer<'a> {
    fn new(world: &'a World) -> Self {
        let producer: BaseProducer = world.client().set("transactional.id", "ledger-writer").create().unwrap();
        producer.init_transactions(WAIT).unwrap();
        Self { world, producer }
    }

    fn write(&self, number: u32) -> &BaseProducer {
        self.producer.begin_transaction().unwrap();
        let value = ledger::encode([entry(number)]);
        let record = BaseRecord::<(), _>::to(&self.world.topics.ledger).partition(PARTITION).payload(&value);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        self.producer.flush(WAIT).unwrap();
        &self.producer
    }
}

fn entry(number: u32) -> Entry {
    let packet = packet(number);
    Entry::new(&packet.repo_id, &id_of(&packet), &packet.content)
}

fn collect(
    read: impl FnOnce(&mut dyn FnMut(i32, &str, &[Entry])) -> Result<(), processor::ports::Fault>,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    read(&mut |_, _, found| entries.extend_from_slice(found)).unwrap();
    entries
}

fn identity(world: &World) -> Identity {
    Identity {
        client: world.client(),
        group: "ledger-readers".into(),
        member: "reader".into(),
        sources: vec![world.topics.packets.clone()],
        topics: world.topics.clone(),
        session_timeout: Duration::from_secs(6),
        transaction_timeout: Duration::from_secs(5),
        stop: CancellationToken::new(),
    }
}
