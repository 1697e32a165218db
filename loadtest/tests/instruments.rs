//! The instruments themselves: a corpus is the same everywhere and valid, and merged latencies lose nothing.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use coderelay_schemas::gzip::{GzipLimits, verify};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::validate::{PacketLimits, check_fields};
use flate2::read::GzDecoder;
use loadtest::corpus::{Corpus, CorpusSpec, Found};
use loadtest::latency::Latency;

fn corpus(seed: u64) -> Corpus {
    Corpus::new(CorpusSpec { seed, ..CorpusSpec::default() }).unwrap()
}

#[test]
fn one_seed_gives_one_corpus() {
    let (a, b, other) = (corpus(7), corpus(7), corpus(8));
    for n in [0, 1, 999, 123_456_789] {
        assert_eq!(a.packet(n), b.packet(n));
        assert_ne!(a.packet(n).packet_id, other.packet(n).packet_id);
    }
}

/// Pinned, so that figures of different versions and machines come from the same packets.
#[test]
fn a_corpus_does_not_change_with_time() {
    let packet = corpus(1).packet(12_345);
    assert_eq!(PacketId::from_slice(&packet.packet_id).unwrap().to_string(), "023283c6c282f5a9bc35ddeb629148d9");
    assert_eq!(packet.repo_id, "load/repository-000442");
    assert_eq!(packet.metadata["path"], "src/module_26/file_12345.rs");
    let first_line = BufReader::new(GzDecoder::new(&packet.content[..])).lines().next();
    assert_eq!(first_line.unwrap().unwrap(), "/// Moves the cursor of a guard to its next offset.");
}

#[test]
fn every_packet_is_valid_and_unique() {
    let (corpus, limits) = (corpus(3), PacketLimits::default());
    let gzip = GzipLimits { max_compressed: 4 << 20, max_expanded: 64 << 20, max_ratio: 200 };
    let (mut ids, mut contents) = (HashSet::new(), HashSet::new());
    for n in 0..5000 {
        let packet = corpus.packet(n);
        assert_eq!(check_fields(&packet, &limits), Ok(()));
        assert!(verify(&packet.content, &gzip).unwrap() > packet.content.len() as u64);
        assert!((960..=1024).contains(&packet.content.len()), "{} bytes", packet.content.len());
        assert!(ids.insert(packet.packet_id) && contents.insert(packet.content), "packet {n} repeats another");
    }
}

#[test]
fn packets_of_real_files_are_valid_unique_and_known_by_their_ids() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = Corpus::new(CorpusSpec { files: Some(folder.into()), ..CorpusSpec::default() }).unwrap();
    let (limits, mut contents) = (PacketLimits::default(), HashSet::new());
    for n in 0..500 {
        let packet = corpus.packet(n);
        assert_eq!(check_fields(&packet, &limits), Ok(()));
        assert!(verify(&packet.content, &limits.gzip()).is_ok());
        assert!(folder.join(&packet.metadata["path"]).is_file());
        assert_eq!((corpus.number(&packet.packet_id), corpus.difference(n, &Found::from(&packet))), (Some(n), None));
        assert!(contents.insert(packet.content), "packet {n} repeats another");
    }
}

#[test]
fn merged_latencies_equal_latencies_recorded_together() {
    let (mut together, mut merged) = (Latency::new().unwrap(), Latency::new().unwrap());
    for stream in 0..4u64 {
        let mut own = Latency::new().unwrap();
        for n in 0..1000u64 {
            // Streams of very different speed: averaging their percentiles would be far off.
            let took = Duration::from_micros((n + 1) * 10u64.pow(stream as u32));
            own.record(took, 1);
            together.record(took, 1);
        }
        merged.merge(&own).unwrap();
    }
    assert_eq!(merged.percentiles(), together.percentiles());
    assert_eq!(merged.percentiles().count, 4000);
}

#[test]
fn percentiles_are_within_a_thousandth_of_the_truth() {
    let mut latency = Latency::new().unwrap();
    for milliseconds in 1..=1000 {
        latency.record(Duration::from_millis(milliseconds), 1);
    }
    let found = latency.percentiles();
    for (found, truth) in [(found.p50, 500.0), (found.p90, 900.0), (found.p99, 990.0), (found.max, 1000.0)] {
        assert!((found / truth - 1.0).abs() < 1e-3, "{found} for {truth} ms");
    }
}
