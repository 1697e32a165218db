//! A real topic and a real table, written by hand with faults in them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coderelay_devstack::Stack;
use coderelay_schemas::partition::partition_for;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics::TopicNames;
use coderelay_schemas::{cql, headers};
use loadtest::audit::Audit;
use loadtest::corpus::Corpus;
use loadtest::reader::TopicReader;
use loadtest::summary;
use loadtest::table::Table;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::value::{CqlDate, CqlTimestamp, MaybeUnset};

use super::{committed, corpus, counts, detail};

const PARTITIONS: i32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// A topic and a keyspace of one's own.
struct World {
    stack: &'static Stack,
    topic: String,
    keyspace: String,
    session: Session,
    corpus: Arc<Corpus>,
}

impl World {
    async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let stack = coderelay_devstack::shared().await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let topics = TopicNames::with_suffix(&format!(".a{number}"));
        let keyspace = format!("a{number}");
        stack.create_topics(&topics, PARTITIONS).await.unwrap();
        stack.create_keyspace(&keyspace).await.unwrap();
        let session = SessionBuilder::new().known_node(stack.cql_contact()).build().await.unwrap();
        Self { stack, topic: topics.deduped, keyspace, session, corpus: Arc::new(corpus(number.into())) }
    }

    fn producer(&self, transactional_id: Option<&str>) -> BaseProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.stack.bootstrap_servers());
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        config.create().unwrap()
    }

    /// Writes a packet as the processor would.
    fn publish(&self, producer: &BaseProducer, packet: &CodePacket) {
        self.publish_value(producer, packet, &packet.encode_to_vec());
    }

    /// Writes `value` where `packet` should be.
    fn publish_value(&self, producer: &BaseProducer, packet: &CodePacket, value: &[u8]) {
        let id = hex::encode(&packet.packet_id);
        let header = Header { key: headers::PACKET_ID, value: Some(id.as_bytes()) };
        let record = BaseRecord::to(&self.topic)
            .partition(partition_for(packet.repo_id.as_bytes(), PARTITIONS))
            .key(packet.repo_id.as_bytes())
            .payload(value)
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    async fn store(&self, packet: &CodePacket, day: CqlDate) {
        let created_at = packet.created_at.unwrap();
        let created_at = CqlTimestamp(created_at.seconds * 1000 + i64::from(created_at.nanos) / 1_000_000);
        let key = (packet.repo_id.as_str(), day, &packet.packet_id[..]);
        let (content, region) = (&packet.content[..], MaybeUnset::<&str>::Unset);
        let row = (key.0, key.1, key.2, content, &packet.metadata, created_at, created_at, region, 1_i64);
        self.session.query_unpaged(cql::insert(&self.keyspace), row).await.unwrap();
    }

    /// Starts a reader, at the end, for `packets` packets that are sent and acknowledged in order.
    fn reader(&self, packets: u64) -> (Arc<Audit>, TopicReader, Arc<Mutex<Vec<u64>>>) {
        let audit = Arc::new(Audit::new(Arc::clone(&self.corpus), packets).exclusive());
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let on_record = move |n, _| heard.lock().unwrap().push(n);
        let bootstrap = self.stack.bootstrap_servers();
        let reader = TopicReader::start(&bootstrap, &self.topic, Arc::clone(&audit), on_record).unwrap();
        (audit, reader, told)
    }

    async fn finish(&self, audit: &Audit, reader: TopicReader) -> summary::Audit {
        tokio::task::block_in_place(|| reader.finish(PATIENCE)).unwrap();
        let table = Table::connect(&self.stack.cql_contact(), &self.keyspace).await.unwrap();
        table.audit(audit, |_| ()).await.unwrap();
        audit.finish()
    }

    fn id(&self, n: u64) -> String {
        hex::encode(self.corpus.packet_id(n))
    }
}

fn send_all(audit: &Audit, packets: u64) {
    for n in 0..packets {
        audit.sent(n, 0);
        audit.acknowledged(n, &committed(0, n as i64));
    }
}

const DAY: CqlDate = CqlDate((1 << 31) + 20_717);

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_run_is_clean_and_what_was_there_before_does_not_count() {
    let world = World::new().await;
    let producer = world.producer(None);
    world.publish(&producer, &world.corpus.packet(77));
    producer.flush(PATIENCE).unwrap();

    let (audit, reader, told) = world.reader(500);
    send_all(&audit, 500);
    for n in 0..500 {
        world.publish(&producer, &world.corpus.packet(n));
        world.store(&world.corpus.packet(n), DAY).await;
    }
    producer.flush(PATIENCE).unwrap();
    let summary = world.finish(&audit, reader).await;
    assert!(summary.is_clean() && summary.acknowledged == 500, "{summary:#?}");
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    assert!(told.into_iter().eq(0..500), "each record is told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_fault_is_found() {
    const PACKETS: u64 = 60;
    let world = World::new().await;
    let producer = world.producer(None);
    let (audit, reader, _) = world.reader(PACKETS);
    send_all(&audit, PACKETS);
    let packet = |n| world.corpus.packet(n);

    // Packets 0 to 2, 3 to 5 and so on belong to one repository each.
    let [not_published, not_stored, doubled, altered, broken, renamed, altered_row, stored_twice] =
        [0, 4, 7, 10, 13, 16, 19, 22];
    let [swapped, overtaker] = [30, 31];
    let (beyond, stranger) = (packet(PACKETS), corpus(99).packet(0));
    for n in (0..PACKETS).filter(|n| ![not_published, swapped].contains(n)) {
        let mut sent = packet(n);
        match n {
            n if n == altered => sent.metadata.insert("path".into(), "elsewhere.rs".into()).map_or((), drop),
            n if n == renamed => sent.packet_id = vec![7; 16].into(),
            _ => {}
        }
        let value = if n == broken { vec![0xff; 40] } else { sent.encode_to_vec() };
        world.publish_value(&producer, &packet(n), &value);
        if n == doubled {
            world.publish(&producer, &packet(n));
        }
        if n == overtaker {
            world.publish(&producer, &packet(swapped));
        }
    }
    world.publish(&producer, &beyond);
    producer.flush(PATIENCE).unwrap();

    for n in (0..PACKETS).filter(|n| *n != not_stored) {
        let mut row = packet(n);
        if n == altered_row {
            let mut content = row.content.to_vec();
            content[100] ^= 1;
            row.content = content.into();
        }
        world.store(&row, DAY).await;
    }
    world.store(&packet(stored_twice), CqlDate(DAY.0 + 1)).await;
    world.store(&stranger, DAY).await;

    let summary = world.finish(&audit, reader).await;
    assert_eq!(counts(&summary), [2, 2, 4, 1, 2, 0], "{summary:#?}");
    for (kind, packet_id, said) in [
        ("lost", world.id(not_published), "not seen in the topic; a row"),
        ("lost", world.id(not_stored), "no row"),
        ("duplicated", world.id(doubled), "again in the topic at "),
        ("duplicated", world.id(stored_twice), "several rows"),
        ("altered", world.id(altered), "metadata lacks \"path\""),
        ("altered", world.id(broken), "cannot be decoded"),
        ("altered", world.id(renamed), "packet_id is \"0707"),
        ("altered", world.id(altered_row), "content differs from byte 100"),
        ("reordered", world.id(swapped), world.id(overtaker).as_str()),
        ("unsent", hex::encode(&beyond.packet_id), "seen in the topic at"),
        ("unsent", hex::encode(&stranger.packet_id), "a row of"),
    ] {
        assert!(detail(&summary, kind, &packet_id).contains(said), "{kind} {packet_id}: {said}\n{summary:#?}");
    }
    assert_eq!(summary.findings.len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_an_aborted_transaction_are_not_seen() {
    let world = World::new().await;
    let (audit, reader, told) = world.reader(3);
    send_all(&audit, 2);
    let producer = world.producer(Some("audit-aborts"));
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    world.publish(&producer, &world.corpus.packet(0));
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    // A second record of one, the only record of another, and one that was never sent.
    for n in 0..3 {
        world.publish(&producer, &world.corpus.packet(n));
    }
    producer.flush(PATIENCE).unwrap();
    producer.abort_transaction(PATIENCE).unwrap();
    world.store(&world.corpus.packet(0), DAY).await;
    world.store(&world.corpus.packet(1), DAY).await;

    let summary = world.finish(&audit, reader).await;
    assert_eq!(counts(&summary), [1, 0, 0, 0, 0, 0], "{summary:#?}");
    assert!(detail(&summary, "lost", &world.id(1)).contains("not seen in the topic"));
    assert_eq!(*told.lock().unwrap(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_still_open_at_the_end_is_waited_for() {
    let world = World::new().await;
    let (audit, reader, _) = world.reader(1);
    send_all(&audit, 1);
    world.store(&world.corpus.packet(0), DAY).await;
    let producer = world.producer(Some("audit-waits"));
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    world.publish(&producer, &world.corpus.packet(0));
    producer.flush(PATIENCE).unwrap();
    let commit = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        producer.commit_transaction(PATIENCE).unwrap();
    });
    let summary = world.finish(&audit, reader).await;
    commit.join().unwrap();
    assert!(summary.is_clean(), "{summary:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_from_the_beginning_sees_what_was_there_before() {
    let world = World::new().await;
    let producer = world.producer(None);
    for n in 0..50 {
        world.publish(&producer, &world.corpus.packet(n));
    }
    producer.flush(PATIENCE).unwrap();
    let audit = Arc::new(Audit::new(Arc::clone(&world.corpus), 50).without_table());
    send_all(&audit, 50);
    let bootstrap = world.stack.bootstrap_servers();
    let reader = TopicReader::start_at_beginning(&bootstrap, &world.topic, Arc::clone(&audit), |_, _| ()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while reader.seen() < 50 {
        assert!(Instant::now() < deadline, "{} of 50 seen", reader.seen());
        std::thread::sleep(Duration::from_millis(20));
    }
    tokio::task::block_in_place(|| reader.finish(PATIENCE)).unwrap();
    assert!(audit.finish().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_readable_from_the_moment_it_is_written() {
    let world = World::new().await;
    let table = Table::connect(&world.stack.cql_contact(), &world.keyspace).await.unwrap();
    let patience = Duration::from_millis(50);
    assert_eq!(table.readable(&world.corpus, 0, DAY, patience).await.unwrap(), None);
    let (written, readable) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let before = Instant::now();
            world.store(&world.corpus.packet(0), DAY).await;
            before
        },
        table.readable(&world.corpus, 0, DAY, PATIENCE)
    );
    assert!(readable.unwrap().unwrap() >= written);
}

#[tokio::test]
async fn a_topic_or_table_that_is_missing_is_named() {
    let world = World::new().await;
    let audit = Arc::new(Audit::new(Arc::clone(&world.corpus), 1));
    let error = TopicReader::start(&world.stack.bootstrap_servers(), "no-such-topic", audit, |_, _| ()).unwrap_err();
    assert!(format!("{error:#}").contains("no-such-topic"), "{error:#}");
    let error = Table::connect(&world.stack.cql_contact(), "no_such_keyspace").await.unwrap_err();
    assert!(format!("{error:#}").contains("no_such_keyspace"), "{error:#}");
}
