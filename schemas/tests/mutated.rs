//! Damaged packets, contents and ledger records: each is taken or refused, and what is taken can be relied on.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/mutation.rs"]
mod mutation;

use std::io::Read as _;
use std::time::SystemTime;

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content, check_fields, complete};
use flate2::bufread::MultiGzDecoder;
use mutation::Mutator;
use proptest::prelude::*;
use prost::Message as _;

/// What judging may take at any one time, in MiB.
const MEMORY: u64 = 128;

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_that_passes_still_passes_when_it_is_completed_and_sent_on(seed in any::<u64>()) {
        let limits = PacketLimits::default();
        let Ok(mut packet) = CodePacket::decode(&*Mutator::new(seed).packet()) else { return Ok(()) };
        if check_fields(&packet, &limits).is_ok() && check_content(&packet.content, &limits).is_ok() {
            let id = complete(&mut packet, SystemTime::now(), &limits);
            let mut sent = CodePacket::decode(&*packet.encode_to_vec()).unwrap();
            prop_assert_eq!(&sent, &packet);
            prop_assert_eq!(check_fields(&sent, &limits), Ok(()));
            prop_assert_eq!(complete(&mut sent, SystemTime::now(), &limits), id);
        }
    }

    /// libdeflate takes a few streams that zlib refuses.
    #[test]
    fn content_that_passes_is_read_by_others_to_the_same_length_or_not_at_all(seed in any::<u64>()) {
        let mut mutator = Mutator::new(seed);
        let content = mutator.good().content;
        let content = mutator.damaged(&content);
        if let Ok(length) = check_content(&content, &PacketLimits::default()) {
            let read = MultiGzDecoder::new(&*content).read_to_end(&mut Vec::new());
            prop_assert_eq!(read.map_or(length, |read| read as u64), length);
        }
    }

    #[test]
    fn a_ledger_record_that_is_read_is_read_whole(seed in any::<u64>(), keys in prop::collection::vec(any::<u128>(), 0..20)) {
        let record = ledger::encode(keys.into_iter().map(|key| Entry { key, fingerprint: seed }));
        let damaged = Mutator::new(seed).damaged(&record);
        if let Ok(entries) = ledger::decode(&damaged) {
            prop_assert_eq!(ledger::encode(entries), damaged.clone());
        }
    }

    #[test]
    fn a_reason_or_an_id_that_is_read_is_written_the_same(seed in any::<u64>()) {
        let mut mutator = Mutator::new(seed);
        let reason = DlqReason::ALL[mutator.below(DlqReason::ALL.len())].as_str();
        let damaged = String::from_utf8_lossy(&mutator.damaged(reason.as_bytes())).into_owned();
        if let Ok(reason) = damaged.parse::<DlqReason>() {
            prop_assert_eq!(reason.as_str(), damaged);
        }
        let id = PacketId::from_slice(&mutator.bytes(16)).unwrap().to_string();
        let damaged = String::from_utf8_lossy(&mutator.damaged(id.as_bytes())).into_owned();
        if let Ok(id) = damaged.parse::<PacketId>() {
            prop_assert_eq!(id.to_string(), damaged.to_ascii_lowercase());
        }
    }
}

#[test]
fn judging_damaged_content_takes_little_memory() {
    let limits = PacketLimits::default();
    for seed in 0..2_000 {
        let mut mutator = Mutator::new(seed);
        let content = mutator.good().content;
        let mut content = mutator.damaged(&content);
        // A trailer that promises up to 16 MiB.
        content.extend_from_slice(&(mutator.below(1 << 24) as u32).to_le_bytes());
        let _ = check_content(&content, &limits);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()).unwrap();
    let peak = peak.parse::<u64>().unwrap() / 1024;
    assert!(peak < MEMORY, "{peak} MiB");
}
