//! One region: what becomes of its topic is a function of it.

use coderelay_schemas::partition::partition_for;
use loadtest::chaos::evidence::{Evidence, Source};
use loadtest::chaos::history::Event;
use loadtest::chaos::packets::Packets;
use loadtest::chaos::topic::Record;
use loadtest::chaos::verdict::{Kind, judge};
use prost::Message as _;

use crate::records::{self, TOPIC, at, committed, entry, kinds, packets, row, version};

/// Three packets were sent: the first twice, the last with another content as well; and one record that is none.
struct Case {
    packets: Packets,
    events: Vec<Event>,
    evidence: Evidence,
}

impl Case {
    fn new() -> Self {
        let packets = packets();
        let sent = [(0, 0), (1, 0), (0, 0), (2, 0), (2, 1)].map(|(packet, content)| version(packet, content));
        let records =
            (0..).zip(sent).map(|(offset, version)| records::record(&packets, "local", offset, offset, version));
        let mut source: Vec<_> = records.collect();
        source.push(Record { offset: 5, value: Some(b"\xff\xff".to_vec()), ..source[0].clone() });
        let accepted = [0, 1, 3];
        let deduped: Vec<_> = accepted.iter().zip([0, 1, 4]).map(|(from, to)| at(&source[*from], to)).collect();
        let evidence = Evidence {
            region: None,
            ledger: vec![accepted.iter().map(|index| entry(&packets, TOPIC, sent[*index])).collect()],
            rows: accepted.iter().map(|index| row(&packets, &source[*index], sent[*index])).collect(),
            witnessed: deduped.clone(),
            deduped: vec![deduped],
            letters: vec![vec![letter(&source[4], "id_conflict"), letter(&source[5], "decode_error")]],
            sources: vec![Source { topic: TOPIC.to_owned(), records: vec![source] }],
            expires: false,
            mirrored_in_order: true,
        };
        let events = (0..).zip(sent).map(|(offset, version)| committed(version, 0, offset)).collect();
        Self { packets, events, evidence }
    }

    /// The promises that are broken.
    fn verdict(&self) -> Vec<Kind> {
        kinds(judge(&self.packets, &self.events, std::slice::from_ref(&self.evidence)).unwrap())
    }
}

fn letter(record: &Record, reason: &str) -> Record {
    records::letter(record, TOPIC, reason)
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

/// The case of a world in which records expire: the first packet has, both times, and the first of its records was replayed.
fn expired() -> Case {
    let mut case = Case::new();
    let evidence = &mut case.evidence;
    let source = &mut evidence.sources[0].records[0];
    let replayed = Record { offset: 6, timestamp: Some(records::NOW as i64 + 9), ..source[0].clone() };
    evidence.letters[0].extend([letter(&source[0], "expired"), letter(&source[2], "expired")]);
    evidence.deduped[0].remove(0);
    evidence.deduped[0].push(at(&replayed, 7));
    evidence.witnessed = evidence.deduped[0].clone();
    evidence.ledger[0].rotate_left(1);
    evidence.rows[0] = row(&case.packets, &replayed, version(0, 0));
    source.push(replayed);
    evidence.expires = true;
    case
}

#[test]
fn what_expired_and_was_replayed_passes_and_is_a_dead_letter_where_nothing_expires() {
    assert_eq!(expired().verdict(), []);
    let mut case = expired();
    case.evidence.expires = false;
    assert!(case.verdict().contains(&Kind::DeadLettered), "{:?}", case.verdict());
}

#[test]
fn what_expired_and_never_came_back_is_found() {
    let mut case = expired();
    let evidence = &mut case.evidence;
    evidence.sources[0].records[0].pop();
    evidence.deduped[0].pop();
    evidence.witnessed.pop();
    evidence.ledger[0].pop();
    evidence.rows.remove(0);
    assert_eq!(case.verdict(), [Kind::DeadLettered]);
}

#[test]
fn what_is_replayed_twice_and_accepted_twice_is_found() {
    let mut case = expired();
    let evidence = &mut case.evidence;
    let source = &mut evidence.sources[0].records[0];
    let again = at(&source[6], 7);
    evidence.deduped[0].push(at(&again, 8));
    evidence.witnessed = evidence.deduped[0].clone();
    source.push(again);
    assert_eq!(case.verdict(), [Kind::Published]);
}

#[test]
fn an_acknowledgement_of_what_is_not_there_is_found() {
    let acknowledged = [Kind::Acknowledged];
    let place = |case: &mut Case, at| case.events[0] = committed(version(0, 0), 0, at);
    assert_eq!(spoilt(|case| place(case, 1)), acknowledged);
    assert_eq!(spoilt(|case| place(case, 99)), acknowledged);
    // Its twin's place: one record answers two packets.
    assert_eq!(spoilt(|case| place(case, 2)), acknowledged);
}

#[test]
fn a_record_that_nobody_sent_is_found() {
    let kinds = spoilt(|case| {
        let mut packet = case.packets.packet(version(1, 0)).unwrap();
        packet.metadata.clear();
        case.evidence.sources[0].records[0][2].value = Some(packet.encode_to_vec());
    });
    assert!(kinds.contains(&Kind::Acknowledged), "{kinds:?}");
}

#[test]
fn a_record_in_another_partition_than_its_key_s_is_found() {
    let case = Case::new();
    let key = case.evidence.sources[0].records[0][0].key.clone().unwrap();
    // As many partitions as it takes for the first not to be its own.
    let partitions = (2..100).find(|count| partition_for(&key, *count) != 0).unwrap();
    let kinds = spoilt(|case| case.evidence.sources[0].records.resize(partitions as usize, Vec::new()));
    assert_eq!(kinds, [Kind::Acknowledged]);
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
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.day += 1), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.metadata.clear()), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.ingested_at += 1), [Kind::Stored]);
    assert_eq!(spoilt(|case| case.evidence.rows[0].1.region = None), [Kind::Stored]);
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
    assert_eq!(spoilt(|case| case.evidence.letters[0][0].timestamp = None), [Kind::DeadLettered]);
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
    assert_eq!(spoilt(|case| case.evidence.ledger[0][0].topic = None), [Kind::Remembered]);
}

#[test]
fn what_one_transaction_published_and_two_remember_is_found() {
    let offsets = |published: [i64; 3], remembered: [i64; 3]| {
        spoilt(|case| {
            case.evidence.deduped[0].iter_mut().zip(published).for_each(|(record, offset)| record.offset = offset);
            case.evidence.witnessed.clone_from(&case.evidence.deduped[0]);
            case.evidence.ledger[0].iter_mut().zip(remembered).for_each(|(entry, offset)| entry.offset = offset);
        })
    };
    assert_eq!(offsets([0, 1, 3], [0, 0, 2]), []);
    assert_eq!(offsets([0, 5, 7], [0, 0, 2]), [], "a fenced worker's records may lie between");
    assert_eq!(offsets([0, 1, 3], [0, 2, 4]), [Kind::Remembered]);
    assert_eq!(offsets([0, 2, 3], [0, 0, 2]), [Kind::Remembered]);
}
