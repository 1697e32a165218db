//! What one packet costs ingest: decoding it, verifying its content, deriving its id and picking its partition.

#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;
use std::io::{Read, Write};

use bytes::Bytes;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::partition::partition_for;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content, check_fields};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message as _;

/// A packet of this very repository's code, about `compressed` bytes of content.
fn packet(compressed: usize) -> CodePacket {
    let source = concat!(include_str!("../src/gzip.rs"), include_str!("../src/validate.rs"), include_str!("packet.rs"));
    let mut content = Vec::new();
    for lines in 1.. {
        let head: Vec<&str> = source.split_inclusive('\n').cycle().take(lines).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(head.concat().as_bytes()).expect("writing to memory");
        content = encoder.finish().expect("writing to memory");
        if content.len() >= compressed {
            break;
        }
    }
    let metadata = [("path", "schemas/src/gzip.rs"), ("language", "rust")];
    CodePacket {
        repo_id: "github.com/example/coderelay".to_owned(),
        content: content.into(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        packet_id: Bytes::new(),
        created_at: None,
    }
}

fn benches(c: &mut Criterion) {
    let limits = PacketLimits::default();
    for size in [1_000, 8_000] {
        let packet = packet(size);
        let encoded = Bytes::from(packet.encode_to_vec());
        let id = PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata);

        let mut group = c.benchmark_group("packet");
        group.throughput(Throughput::Elements(1));
        let mut bench = |name: &str, routine: &mut dyn FnMut()| {
            group.bench_function(BenchmarkId::new(name, size), |b| b.iter(&mut *routine));
        };
        bench("decode", &mut || drop(black_box(CodePacket::decode(encoded.clone()))));
        bench("check_fields", &mut || drop(black_box(check_fields(&packet, &limits))));
        bench("check_content", &mut || drop(black_box(check_content(&packet.content, &limits))));
        bench("multi_gz_decoder", &mut || {
            let mut buffer = [0; 16 * 1024];
            let mut decoder = MultiGzDecoder::new(&*packet.content);
            while decoder.read(&mut buffer).expect("the content is sound") > 0 {}
        });
        bench("derive_id", &mut || {
            black_box(PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata));
        });
        bench("ledger_entry", &mut || {
            black_box(Entry::new(&packet.repo_id, &id, &packet.content));
        });
        bench("partition", &mut || {
            black_box(partition_for(packet.repo_id.as_bytes(), 12));
        });
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
