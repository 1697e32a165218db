//! Damaged records, decoded: each gives one packet or one reason, and the same one when it is read again.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

#[path = "../../schemas/tests/support/mutation.rs"]
mod mutation;

use coderelay_schemas::headers::{CHECKED, CHECKED_GZIP, REGION};
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content, check_fields};
use mutation::Mutator;
use processor::decode::decode;
use processor::record::{Headers, Record, TopicPartition};
use proptest::prelude::*;
use prost::Message as _;

fn record(mutator: &mut Mutator, timestamp_ms: Option<i64>) -> Record {
    let value = mutator.packet();
    let key = CodePacket::decode(&*value).map(|packet| packet.repo_id.into_bytes()).unwrap_or_default();
    let mut headers = Headers::default();
    headers.push(REGION, Some(&mutator.bytes(4)));
    if mutator.below(2) == 0 {
        headers.push(CHECKED, Some(&mutator.damaged(CHECKED_GZIP.as_bytes())));
    }
    Record {
        source: TopicPartition::new("code.packets.v1", 0),
        offset: 0,
        timestamp_ms,
        key: Some(if mutator.below(10) == 0 { mutator.damaged(&key) } else { key }.into()),
        value: Some(value.into()),
        headers,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_is_judged_the_same_each_time(seed in any::<u64>(), timestamp in any::<Option<i64>>()) {
        let limits = PacketLimits::default();
        let record = record(&mut Mutator::new(seed), timestamp);
        let judged = decode(&record, &limits);
        prop_assert_eq!(&decode(&record, &limits), &judged);
        match judged {
            Ok(packet) => {
                let sent = CodePacket::decode(record.value.clone().unwrap()).unwrap();
                prop_assert_eq!(check_fields(&sent, &limits), Ok(()));
                let checked = record.headers.last(CHECKED) == Some(CHECKED_GZIP.as_bytes());
                prop_assert!(checked || check_content(&sent.content, &limits).is_ok());
                prop_assert_eq!((&packet.row.repo_id, &packet.row.content), (&sent.repo_id, &sent.content));
                let _ = (packet.row.day(), packet.row.size());
            }
            Err(rejection) => prop_assert!(!rejection.detail.is_empty() && rejection.attempts == 0),
        }
    }
}
