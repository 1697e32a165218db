//! Damaged records, many of them: each is stored and published, or a duplicate, or in the dead-letter topic, as the rules say.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use coderelay_schemas::headers::{CHECKED, CHECKED_GZIP, PACKET_ID, REGION};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::validate::PacketLimits;
use coderelay_schemas::{cql, dlq, pb};
use futures::TryStreamExt;
use processor::decode::decode;
use processor::record::{Headers, Record, TopicPartition};
use prost::Message as _;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use scylla::value::CqlDate;

use crate::mutation::{Mutator, mutations};
use crate::support::{PATIENCE, Read, Running, World, now_ms};

/// Records that are written and waited for at one time.
const CHUNK: usize = 10_000;

/// What the processor may grow by, in MiB: it remembers ids, fills caches and buffers.
const GROWTH: u64 = 512;

#[tokio::test(flavor = "multi_thread")]
async fn every_mutated_record_has_exactly_one_end() {
    let world = World::new().await;
    let processor = world.processor("a").ready().await;
    let before = memory(&processor, "VmRSS:");
    for seed in 0..mutations().div_ceil(CHUNK) as u64 {
        produce(&world, &mut Mutator::new(seed), CHUNK.min(mutations()));
        world.settled().await;
        assert!(processor.process.is_running());
    }
    let (peak, after) = (memory(&processor, "VmHWM:"), memory(&processor, "VmRSS:"));
    processor.stop().await;

    let expected = Expected::of(&world, world.committed(&world.topics.packets));
    println!("{expected}; {before} MiB before, {peak} at most, {after} after");
    assert!(expected.published.len() > 100 && expected.dead.len() > 100 && expected.duplicates > 10);
    assert_eq!(dead_letters(&world), expected.dead, "dead letters");
    let published: Vec<_> = world.committed(&world.topics.deduped).into_iter().map(identity).collect();
    assert_eq!(published.len(), expected.published.len(), "published");
    assert!(published.into_iter().collect::<BTreeSet<_>>() == expected.published, "published byte for byte");
    assert!(stored(&world).await == expected.rows, "stored");
    assert!(peak - before < GROWTH, "grew from {before} to {peak} MiB");
}

/// Writes mutated packets under the keys they should have, most of them, and with headers that are true, or not.
fn produce(world: &World, mutator: &mut Mutator, count: usize) {
    let producer: ThreadedProducer<_> = world.client().set("partitioner", "murmur2_random").create().unwrap();
    let mut value = Vec::new();
    for _ in 0..count {
        value = match mutator.below(20) {
            // The last one again.
            0 => value,
            // One of a few ids, with content of its own.
            1 => {
                let packet_id = vec![mutator.below(8) as u8; 16].into();
                pb::CodePacket { repo_id: "github.com/acme/one".into(), packet_id, ..mutator.good() }.encode_to_vec()
            }
            _ => mutator.packet(),
        };
        let repo_id = pb::CodePacket::decode(&*value).map(|packet| packet.repo_id).unwrap_or_default();
        let key = if mutator.below(20) == 0 { mutator.damaged(repo_id.as_bytes()) } else { repo_id.into_bytes() };
        let noise = mutator.below(20);
        let mut headers = OwnedHeaders::new().insert(Header { key: REGION, value: Some(&mutator.bytes(noise)) });
        if mutator.below(4) == 0 {
            let value = mutator.damaged(CHECKED_GZIP.as_bytes());
            headers = headers.insert(Header { key: CHECKED, value: Some(&value) });
            headers = headers.insert(Header { key: PACKET_ID, value: None::<&[u8]> });
        }
        let record = BaseRecord::to(&world.topics.packets).headers(headers).timestamp(now_ms());
        producer.send(record.key(&key).payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// What has to become of the records in the source topic.
#[derive(Default)]
struct Expected {
    published: BTreeSet<Identity>,
    rows: BTreeSet<(String, Vec<u8>)>,
    /// Reasons by partition and offset.
    dead: BTreeMap<(i32, i64), String>,
    duplicates: usize,
}

/// Partition, key and value.
type Identity = (i32, Option<Vec<u8>>, Option<Vec<u8>>);

fn identity(read: Read) -> Identity {
    (read.partition, read.key, read.value)
}

impl Expected {
    /// By the rules alone, record by record: all of one repository are in one partition, and in order.
    fn of(world: &World, records: Vec<Read>) -> Self {
        let mut expected = Self::default();
        let mut accepted = HashMap::new();
        for read in records {
            let place = (read.partition, read.offset);
            match decode(&record(world, &read), &PacketLimits::default()) {
                Err(rejection) => drop(expected.dead.insert(place, rejection.reason.to_string())),
                Ok(packet) => {
                    let Entry { key, fingerprint } = packet.entry;
                    match accepted.insert(key, fingerprint) {
                        None => {
                            expected.rows.insert((packet.row.repo_id, packet.row.packet_id.to_bytes().to_vec()));
                            expected.published.insert(identity(read));
                        }
                        Some(first) if first == fingerprint => expected.duplicates += 1,
                        Some(first) => {
                            accepted.insert(key, first);
                            expected.dead.insert(place, "id_conflict".to_owned());
                        }
                    }
                }
            }
        }
        expected
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        self.dead.values().for_each(|reason| *reasons.entry(reason).or_default() += 1);
        write!(f, "{} published, {} duplicates, dead letters: {reasons:?}", self.published.len(), self.duplicates)
    }
}

fn record(world: &World, read: &Read) -> Record {
    let mut headers = Headers::default();
    read.headers.iter().for_each(|(name, value)| headers.push(name, value.as_deref()));
    Record {
        source: TopicPartition::new(&*world.topics.packets, read.partition),
        offset: read.offset,
        timestamp_ms: read.timestamp,
        key: read.key.clone().map(Into::into),
        value: read.value.clone().map(Into::into),
        headers,
    }
}

fn dead_letters(world: &World) -> BTreeMap<(i32, i64), String> {
    let mut dead = BTreeMap::new();
    for letter in world.committed(&world.topics.dlq) {
        let number = |name| letter.header(name).unwrap().parse::<i64>().unwrap();
        let place = (number(dlq::DLQ_PARTITION) as i32, number(dlq::DLQ_OFFSET));
        let twice = dead.insert(place, letter.header(dlq::DLQ_REASON).unwrap());
        assert_eq!(twice, None, "{place:?} has two dead letters");
    }
    dead
}

/// Repository and id of each row.
async fn stored(world: &World) -> BTreeSet<(String, Vec<u8>)> {
    let pages = world.session().query_iter(cql::scan_ids(&world.keyspace), ()).await.unwrap();
    let rows = pages.rows_stream::<(String, CqlDate, Vec<u8>, i64)>().unwrap();
    rows.map_ok(|(repo_id, _, id, _)| (repo_id, id)).try_collect().await.unwrap()
}

/// One of the sizes in `/proc/PID/status`, in MiB.
fn memory(processor: &Running, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", processor.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}
