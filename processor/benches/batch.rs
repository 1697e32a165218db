//! What a batch costs the processor's own code: deciding over 5,000 records against a full memory, remembering what was accepted, and
//! grouping the rows by CQL partition. Broker and store are not in it.

#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coderelay_schemas::headers;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics::PACKETS;
use coderelay_schemas::validate::PacketLimits;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::Compression;
use flate2::write::GzEncoder;
use processor::batch::{Batch, Plan};
use processor::config::BatchConfig;
use processor::cql::{CqlConfig, group};
use processor::dedup::Memory;
use processor::record::{Headers, Record, TopicPartition};
use prost::Message as _;

/// Ids that fill the memory.
const CAPACITY: u64 = 1_000_000;
/// Records in a row of one repository, as a producer that pushes a checkout sends them.
const BURST: usize = 100;
const PARTITIONS: usize = 12;

/// A batch as it is polled: about a kilobyte of gzip each, new ids, in bursts. `checked`: verified by ingest.
fn batch(checked: bool) -> Batch {
    let mut batch = Batch::default();
    // As the source hands it out: all records of a topic share its name.
    let topic = Arc::from(PACKETS);
    for number in 0..BatchConfig::default().max_records {
        batch.push(record(number, &topic, checked));
    }
    batch
}

fn record(number: usize, topic: &Arc<str>, checked: bool) -> Record {
    let source = include_str!("../src/cycle.rs");
    let from = number % 100 * 64;
    let text: String = source.chars().skip(from).take(2800).collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("writing to memory");
    let metadata = [("path", format!("src/file_{number}.rs")), ("language", "rust".to_owned())];
    let packet = CodePacket {
        repo_id: format!("github.com/example/repository-{:04}", number / BURST),
        content: encoder.finish().expect("writing to memory").into(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        packet_id: Bytes::copy_from_slice(&blake3::hash(&number.to_be_bytes()).as_bytes()[..16]),
        created_at: None,
    };
    let mut headers = Headers::default();
    headers.push(headers::REGION, Some(b"local"));
    if checked {
        headers.push(headers::CHECKED, Some(headers::CHECKED_GZIP.as_bytes()));
    }
    Record {
        source: TopicPartition { topic: Arc::clone(topic), partition: (number / BURST % PARTITIONS) as i32 },
        offset: number as i64,
        timestamp_ms: Some(1_800_000_000_000),
        key: Some(packet.repo_id.clone().into()),
        value: Some(packet.encode_to_vec().into()),
        headers,
    }
}

/// A memory that holds as many ids as it may.
fn full_memory() -> Memory {
    let memory = Memory::new(CAPACITY, Duration::from_secs(3600));
    let entry = |number: u64| {
        let hash = blake3::hash(&number.to_le_bytes());
        let key = u128::from_be_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"));
        Entry { key, fingerprint: number }
    };
    // As batches bring them, partition by partition.
    let entries: Vec<_> = (0..CAPACITY).map(entry).collect();
    for (batch, entries) in entries.chunks(400).enumerate() {
        memory.publish((batch % PARTITIONS) as i32, PACKETS, entries);
    }
    memory
}

fn benches(c: &mut Criterion) {
    let (limits, cql) = (PacketLimits::default(), CqlConfig::default());
    let (checked, unchecked) = (batch(true), batch(false));
    let memory = full_memory();
    let mut group_of = c.benchmark_group("batch");
    group_of.throughput(Throughput::Elements(checked.len() as u64));
    group_of.bench_function("classify", |b| b.iter(|| black_box(Plan::of(&checked, &memory, &limits, None))));
    group_of
        .bench_function("classify_unchecked", |b| b.iter(|| black_box(Plan::of(&unchecked, &memory, &limits, None))));

    let plan = Plan::of(&checked, &memory, &limits, None).expect("one topic");
    assert_eq!(plan.rows().len(), checked.len(), "every record is new");
    group_of.bench_function("group_rows", |b| {
        b.iter(|| black_box(group(&plan.rows(), cql.batch_rows, cql.batch_bytes.as_usize())));
    });
    group_of.bench_function("offsets_and_entries", |b| {
        b.iter(|| black_box((checked.next_offsets(), plan.entries(&checked))));
    });
    group_of.bench_function("remember", |b| {
        b.iter(|| {
            for (source, entries) in plan.entries(&checked) {
                memory.publish(source.partition, &source.topic, &entries);
            }
        });
    });
    // Now the memory holds them.
    group_of
        .bench_function("classify_duplicates", |b| b.iter(|| black_box(Plan::of(&checked, &memory, &limits, None))));
    group_of.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
