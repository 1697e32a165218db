//! Packets, contents and ledger records: each is taken or refused, and what is taken can be relied on.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Read as _;
use std::time::SystemTime;

use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content, check_fields, complete};
use flate2::bufread::MultiGzDecoder;
use proptest::prelude::*;
use prost::Message as _;

use crate::mutation::Mutator;

/// A packet that passes still passes when it is completed and sent on.
fn packet(bytes: &[u8]) {
    let limits = PacketLimits::default();
    let Ok(mut packet) = CodePacket::decode(bytes) else { return };
    if check_fields(&packet, &limits).is_ok() && check_content(&packet.content, &limits).is_ok() {
        let id = complete(&mut packet, SystemTime::now(), &limits);
        let mut sent = CodePacket::decode(&*packet.encode_to_vec()).unwrap();
        assert_eq!(sent, packet);
        assert_eq!(check_fields(&sent, &limits), Ok(()));
        assert_eq!(complete(&mut sent, SystemTime::now(), &limits), id);
    }
}

/// Content that passes is read by others to the same length or not at all: libdeflate takes a few streams that zlib refuses.
fn content(bytes: &[u8]) {
    if let Ok(length) = check_content(bytes, &PacketLimits::default()) {
        let read = MultiGzDecoder::new(bytes).read_to_end(&mut Vec::new());
        assert_eq!(read.map_or(length, |read| read as u64), length);
    }
}

/// A ledger record that is read is read whole.
fn ledger_record(bytes: &[u8]) {
    if let Ok(entries) = ledger::decode(bytes) {
        assert_eq!(ledger::encode(entries), bytes);
    }
}

/// A reason or an id that is read is written the same.
fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(reason) = text.parse::<DlqReason>() {
        assert_eq!(reason.as_str(), text);
    }
    if let Ok(id) = text.parse::<PacketId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_packet(seed in any::<u64>()) {
        packet(&Mutator::new(seed).packet());
    }

    #[test]
    fn damaged_content(seed in any::<u64>()) {
        let mut mutator = Mutator::new(seed);
        let good = mutator.good().content;
        content(&mutator.damaged(&good));
    }

    #[test]
    fn a_damaged_ledger_record(seed in any::<u64>(), keys in prop::collection::vec(any::<u128>(), 0..20)) {
        let record = ledger::encode(keys.into_iter().map(|key| Entry { key, fingerprint: seed }));
        ledger_record(&Mutator::new(seed).damaged(&record));
    }

    #[test]
    fn damaged_names(seed in any::<u64>()) {
        let mut mutator = Mutator::new(seed);
        let reason = DlqReason::ALL[mutator.below(DlqReason::ALL.len())].as_str();
        names(&mutator.damaged(reason.as_bytes()));
        let id = PacketId::from_slice(&mutator.bytes(16)).unwrap().to_string();
        names(&mutator.damaged(id.as_bytes()));
    }
}

#[test]
fn any_packet() {
    bolero::check!().for_each(packet);
}

#[test]
fn any_content() {
    bolero::check!().for_each(content);
}

#[test]
fn any_ledger_record() {
    bolero::check!().for_each(ledger_record);
}

#[test]
fn any_names() {
    bolero::check!().for_each(names);
}
