//! The checker of `loadtest chaos`: what is in order passes, and every way to break a promise is found.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, UNIX_EPOCH};

use coderelay_schemas::dlq;
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use loadtest::chaos::evidence::{Evidence, Row, Source};
use loadtest::chaos::history::{Event, What};
use loadtest::chaos::packets::Packets;
use loadtest::chaos::plan::Version;
use loadtest::chaos::topic::Record;
use loadtest::chaos::verdict::{Kind, judge};
use prost::Message as _;

const TOPIC: &str = "code.packets.v1";
const NOW: u64 = 1_790_000_000_000;

/// Three packets were sent: the first twice, the last with another content as well; and one record that is none.
struct Case {
    packets: Packets,
    events: Vec<Event>,
    evidence: Evidence,
}

impl Case {
    fn new() -> Self {
        let packets = Packets::new(1, 3, UNIX_EPOCH + Duration::from_millis(NOW));
        let sent = [(0, 0), (1, 0), (0, 0), (2, 0), (2, 1)].map(|(packet, content)| Version { packet, content });
        let mut source: Vec<_> = (0..).zip(sent).map(|(offset, version)| record(&packets, offset, version)).collect();
        source.push(Record { value: Some(b"\xff\xff".to_vec()), ..source[0].clone() });
        source[5].offset = 5;
        let committed = |(offset, version)| {
            let what = What::Committed { version, region: 0, partition: 0, offset };
            Event { at: 0.0, what }
        };
        let deduped: Vec<_> = [0, 1, 3].iter().zip([0, 1, 4]).map(|(from, to)| at(&source[*from], to)).collect();
        let letters = vec![letter(&source[4], "id_conflict"), letter(&source[5], "decode_error")];
        let accepted = sent.iter().zip(&source).filter(|(version, record)| record.offset != 2 && version.content == 0);
        let accepted: Vec<_> = accepted.map(|(version, record)| (packets.packet(*version).unwrap(), record)).collect();
        let ledger = accepted.iter().map(|(packet, _)| {
            let id = PacketId::from_slice(&packet.packet_id).unwrap();
            (Some(TOPIC.to_owned()), Entry::new(&packet.repo_id, &id, &packet.content))
        });
        let rows = accepted.iter().map(|(packet, record)| {
            let (content, metadata) = (packet.content.to_vec(), packet.metadata.clone().into_iter().collect());
            let written = record.timestamp.unwrap() * 1000;
            let row = Row { content, metadata, created_at: NOW as i64, written };
            ((packet.repo_id.clone(), packet.packet_id.to_vec()), row)
        });
        let evidence = Evidence {
            ledger: vec![ledger.collect()],
            rows: rows.collect(),
            witnessed: deduped.clone(),
            region: None,
            sources: vec![Source { topic: TOPIC.to_owned(), records: vec![source] }],
            deduped: vec![deduped],
            letters: vec![letters],
        };
        let events = (0..).zip(sent).map(committed).collect();
        Self { packets, events, evidence }
    }

    /// The promises that are broken.
    fn verdict(&self) -> Vec<Kind> {
        let violations = judge(&self.packets, &self.events, std::slice::from_ref(&self.evidence)).unwrap();
        let mut kinds: Vec<_> = violations.into_iter().map(|violation| violation.kind).collect();
        kinds.dedup();
        kinds
    }
}

fn record(packets: &Packets, offset: i64, version: Version) -> Record {
    let packet = packets.packet(version).unwrap();
    Record {
        partition: 0,
        offset,
        timestamp: Some(NOW as i64 + offset),
        key: Some(packet.repo_id.clone().into_bytes()),
        value: Some(packet.encode_to_vec()),
        headers: vec![("region".to_owned(), Some(b"local".to_vec()))],
    }
}

fn at(record: &Record, offset: i64) -> Record {
    Record { offset, ..record.clone() }
}

fn letter(record: &Record, reason: &str) -> Record {
    let fields = [
        (dlq::DLQ_TOPIC, TOPIC.to_owned()),
        (dlq::DLQ_PARTITION, record.partition.to_string()),
        (dlq::DLQ_OFFSET, record.offset.to_string()),
        (dlq::DLQ_REASON, reason.to_owned()),
    ];
    let headers = fields.map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
    Record { headers: record.headers.iter().cloned().chain(headers).collect(), ..record.clone() }
}

/// What the checker says of a case that `spoil` has spoilt.
fn spoilt(spoil: impl FnOnce(&mut Case)) -> Vec<Kind> {
    let mut case = Case::new();
    spoil(&mut case);
    case.verdict()
}

#[test]
fn what_is_in_order_passes() {
    assert_eq!(Case::new().verdict(), []);
}

#[test]
fn an_acknowledgement_of_what_is_not_there_is_found() {
    let acknowledged = [Kind::Acknowledged];
    let place = |case: &mut Case, at| {
        case.events[0].what =
            What::Committed { version: Version { packet: 0, content: 0 }, region: 0, partition: 0, offset: at }
    };
    assert_eq!(spoilt(|case| place(case, 1)), acknowledged);
    assert_eq!(spoilt(|case| place(case, 99)), acknowledged);
    // Its twin's place: one record answers two packets.
    assert_eq!(spoilt(|case| place(case, 2)), acknowledged);
}

#[test]
fn a_record_that_nobody_sent_is_found() {
    let kinds = spoilt(|case| {
        let mut packet = case.packets.packet(Version { packet: 1, content: 0 }).unwrap();
        packet.metadata.clear();
        case.evidence.sources[0].records[0][2].value = Some(packet.encode_to_vec());
    });
    assert!(kinds.contains(&Kind::Acknowledged), "{kinds:?}");
}

#[test]
fn what_is_not_published_once_in_order_and_as_it_was_is_found() {
    // The witness read the same.
    let deduped = |spoil: fn(&mut Vec<Record>)| {
        spoilt(|case| {
            spoil(&mut case.evidence.deduped[0]);
            case.evidence.witnessed.clone_from(&case.evidence.deduped[0]);
        })
    };
    assert_eq!(deduped(|records| drop(records.remove(1))), [Kind::Published]);
    assert_eq!(deduped(|records| records.push(at(&records[0].clone(), 9))), [Kind::Published]);
    assert_eq!(deduped(|records| records[1].headers.clear()), [Kind::Published]);
    assert_eq!(deduped(|records| records[1].timestamp = Some(0)), [Kind::Published]);
    assert_eq!(deduped(|records| records[1].value.as_mut().unwrap().truncate(9)), [Kind::Published]);
    let swapped = deduped(|records| {
        let (first, second) = (records[0].offset, records[1].offset);
        records.swap(0, 1);
        (records[0].offset, records[1].offset) = (first, second);
    });
    assert_eq!(swapped, [Kind::Published]);
}

#[test]
fn a_reader_who_saw_more_or_less_is_found() {
    assert_eq!(spoilt(|case| drop(case.evidence.witnessed.pop())), [Kind::Witnessed]);
    assert_eq!(
        spoilt(|case| case.evidence.witnessed.push(at(&case.evidence.sources[0].records[0][0], 77))),
        [Kind::Witnessed]
    );
}

#[test]
fn a_row_that_is_missing_wrong_or_too_many_is_found() {
    assert_eq!(spoilt(|case| drop(case.evidence.rows.pop())), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows.extend_from_within(..1)), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.content.push(0)), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.written += 1), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.metadata.clear()), [Kind::Stored]);
}

#[test]
fn a_dead_letter_that_is_missing_wrong_or_too_many_is_found() {
    assert_eq!(spoilt(|case| drop(case.evidence.letters[0].pop())), [Kind::DeadLettered]);
    let twice = |case: &mut Case| {
        let letter = at(&case.evidence.letters[0][0], 9);
        case.evidence.letters[0].push(letter);
    };
    assert_eq!(spoilt(twice), [Kind::DeadLettered]);
    assert_eq!(spoilt(|case| case.evidence.letters[0][0].value = None), [Kind::DeadLettered]);
    assert_eq!(spoilt(|case| drop(case.evidence.letters[0][0].headers.remove(0))), [Kind::DeadLettered]);
    let other =
        |case: &mut Case| case.evidence.letters[0].push(letter(&case.evidence.sources[0].records[0][0], "id_conflict"));
    assert_eq!(spoilt(other), [Kind::DeadLettered]);
    let reason =
        |case: &mut Case| case.evidence.letters[0][0] = letter(&case.evidence.sources[0].records[0][4], "expired");
    assert_eq!(spoilt(reason), [Kind::DeadLettered]);
}

#[test]
fn a_ledger_that_differs_is_found() {
    assert_eq!(spoilt(|case| drop(case.evidence.ledger[0].pop())), [Kind::Remembered]);
    assert_eq!(spoilt(|case| case.evidence.ledger[0].swap(0, 1)), [Kind::Remembered]);
    assert_eq!(spoilt(|case| case.evidence.ledger[0].extend_from_within(..1)), [Kind::Remembered]);
    assert_eq!(spoilt(|case| case.evidence.ledger[0][0].0 = None), [Kind::Remembered]);
}
