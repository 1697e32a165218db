//! Records, decoded: each gives one packet or one reason.
#![allow(clippy::unwrap_used, reason = "a test")]

use coderelay_schemas::headers::{CHECKED, CHECKED_GZIP, REGION};
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content, check_fields};
use processor::decode::decode;
use processor::record::{Headers, Record, TopicPartition};
use proptest::prelude::*;
use prost::Message as _;

use crate::mutation::Mutator;

fn record(key: Vec<u8>, value: Vec<u8>, headers: Headers, timestamp_ms: Option<i64>) -> Record {
    let source = TopicPartition::new("code.packets.v1", 0);
    Record { source, offset: 0, timestamp_ms, key: Some(key.into()), value: Some(value.into()), headers }
}

/// The key that ingest would give it.
fn key(value: &[u8]) -> Vec<u8> {
    CodePacket::decode(value).map(|packet| packet.repo_id.into_bytes()).unwrap_or_default()
}

/// It gives one packet or one reason, and the same one when it is read again.
fn is_judged_the_same_each_time(record: &Record) {
    let limits = PacketLimits::default();
    let judged = decode(record, &limits);
    assert_eq!(decode(record, &limits), judged);
    match judged {
        Ok(packet) => {
            let sent = CodePacket::decode(record.value.clone().unwrap()).unwrap();
            assert_eq!(check_fields(&sent, &limits), Ok(()));
            let checked = record.headers.last(CHECKED) == Some(CHECKED_GZIP.as_bytes());
            assert!(checked || check_content(&sent.content, &limits).is_ok());
            assert_eq!((&packet.row.repo_id, &packet.row.content), (&sent.repo_id, &sent.content));
            let _ = (packet.row.day(), packet.row.size());
        }
        Err(rejection) => assert!(!rejection.detail.is_empty() && rejection.attempts == 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_record(seed in any::<u64>(), timestamp in any::<Option<i64>>()) {
        let mut mutator = Mutator::new(seed);
        let value = mutator.packet();
        let key = key(&value);
        let key = if mutator.below(10) == 0 { mutator.damaged(&key) } else { key };
        let mut headers = Headers::default();
        headers.push(REGION, Some(&mutator.bytes(4)));
        if mutator.below(2) == 0 {
            headers.push(CHECKED, Some(&mutator.damaged(CHECKED_GZIP.as_bytes())));
        }
        is_judged_the_same_each_time(&record(key, value, headers, timestamp));
    }
}

#[test]
fn any_record() {
    bolero::check!().for_each(|value: &[u8]| {
        let mut checked = Headers::default();
        checked.push(CHECKED, Some(CHECKED_GZIP.as_bytes()));
        for headers in [Headers::default(), checked] {
            is_judged_the_same_each_time(&record(key(value), value.to_vec(), headers, Some(value.len() as i64)));
        }
    });
}
