//! The checker of `loadtest chaos` where two regions mirror each other: there is no order between their topics, and both stores are to
//! end with the same rows.

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

const NOW: u64 = 1_790_000_000_000;
const OWN: &str = "code.packets.v1";
const NAMES: [&str; 2] = ["east", "west"];

/// Packet 0 was sent to the first region, packet 1 to both, and packet 2 to both with different contents, of which each region published
/// the one that its own producers sent. The second region's first record was mirrored twice.
struct Case {
    packets: Packets,
    events: Vec<Event>,
    regions: Vec<Evidence>,
}

impl Case {
    fn new() -> Self {
        let packets = Packets::new(1, 3, UNIX_EPOCH + Duration::from_millis(NOW));
        let sent = [vec![(0, 0), (1, 0), (2, 0)], vec![(1, 0), (2, 1)]];
        let topics = [0, 1].map(|region: usize| {
            let records = (0..).zip(&sent[region]).map(|(offset, version)| record(&packets, region, offset, *version));
            records.collect::<Vec<_>>()
        });
        let mut events = Vec::new();
        for (region, versions) in sent.iter().enumerate() {
            for (offset, (packet, content)) in (0..).zip(versions.iter().copied()) {
                let what = What::Committed { version: Version { packet, content }, region, partition: 0, offset };
                events.push(Event { at: 0.0, what });
            }
        }
        let [east, west] = topics;
        let mut twice = west.clone();
        twice.push(at(&west[0], 2));
        let entries = |topic: &str, versions: &[(u32, u8)]| -> Vec<(Option<String>, Entry)> {
            versions.iter().map(|version| (Some(topic.to_owned()), entry(&packets, *version))).collect()
        };
        let rows =
            || vec![row(&packets, &east[0], (0, 0)), row(&packets, &west[0], (1, 0)), row(&packets, &west[1], (2, 1))];
        let region = |number: usize, own: &[Record], mirrored: &[Record], deduped: Vec<Record>, letter, ledger| {
            let other = format!("{}.{OWN}", NAMES[1 - number]);
            let source =
                |topic: &str, records: &[Record]| Source { topic: topic.to_owned(), records: vec![records.to_vec()] };
            Evidence {
                region: Some(NAMES[number].to_owned()),
                sources: vec![source(OWN, own), source(&other, mirrored)],
                witnessed: deduped.clone(),
                deduped: vec![deduped],
                letters: vec![vec![letter]],
                ledger: vec![ledger],
                rows: rows(),
            }
        };
        // Of an id that was seen before, the ledger has the content that was published.
        let east_ledger =
            [entries(OWN, &[(0, 0), (1, 0), (2, 0)]), entries("west.code.packets.v1", &[(1, 0), (2, 0)])].concat();
        let west_ledger = [
            entries("east.code.packets.v1", &[(0, 0)]),
            entries(OWN, &[(1, 0), (2, 1)]),
            entries("east.code.packets.v1", &[(1, 0), (2, 1)]),
        ]
        .concat();
        let regions = vec![
            region(0, &east, &twice, east.clone(), letter(&west[1], "west.code.packets.v1"), east_ledger),
            region(
                1,
                &west,
                &east,
                vec![at(&east[0], 0), at(&west[0], 1), at(&west[1], 2)],
                letter(&east[2], "east.code.packets.v1"),
                west_ledger,
            ),
        ];
        Self { packets, events, regions }
    }

    fn verdict(&self) -> Vec<Kind> {
        let violations = judge(&self.packets, &self.events, &self.regions).unwrap();
        let mut kinds: Vec<_> = violations.into_iter().map(|violation| violation.kind).collect();
        kinds.dedup();
        kinds
    }
}

fn record(packets: &Packets, region: usize, offset: i64, (packet, content): (u32, u8)) -> Record {
    let packet = packets.packet(Version { packet, content }).unwrap();
    Record {
        partition: 0,
        offset,
        timestamp: Some(NOW as i64 + 10 * region as i64 + offset),
        key: Some(packet.repo_id.clone().into_bytes()),
        value: Some(packet.encode_to_vec()),
        headers: vec![("region".to_owned(), Some(NAMES[region].as_bytes().to_vec()))],
    }
}

fn at(record: &Record, offset: i64) -> Record {
    Record { offset, ..record.clone() }
}

fn entry(packets: &Packets, (packet, content): (u32, u8)) -> Entry {
    let packet = packets.packet(Version { packet, content }).unwrap();
    Entry::new(&packet.repo_id, &PacketId::from_slice(&packet.packet_id).unwrap(), &packet.content)
}

fn row(packets: &Packets, record: &Record, (packet, content): (u32, u8)) -> ((String, Vec<u8>), Row) {
    let packet = packets.packet(Version { packet, content }).unwrap();
    let row = Row {
        content: packet.content.to_vec(),
        metadata: packet.metadata.clone().into_iter().collect(),
        created_at: NOW as i64,
        written: record.timestamp.unwrap() * 1000,
    };
    ((packet.repo_id, packet.packet_id.to_vec()), row)
}

fn letter(record: &Record, topic: &str) -> Record {
    let fields = [
        (dlq::DLQ_TOPIC, topic.to_owned()),
        (dlq::DLQ_PARTITION, record.partition.to_string()),
        (dlq::DLQ_OFFSET, record.offset.to_string()),
        (dlq::DLQ_REASON, "id_conflict".to_owned()),
    ];
    let headers = fields.map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
    Record { headers: record.headers.iter().cloned().chain(headers).collect(), ..record.clone() }
}

fn spoilt(spoil: impl FnOnce(&mut Case)) -> Vec<Kind> {
    let mut case = Case::new();
    spoil(&mut case);
    case.verdict()
}

#[test]
fn what_is_in_order_passes_whichever_copy_a_region_published() {
    assert_eq!(Case::new().verdict(), []);
}

#[test]
fn a_mirror_that_left_out_altered_or_turned_round_is_found() {
    let mirrored = |spoil: fn(&mut Vec<Record>)| spoilt(|case| spoil(&mut case.regions[0].sources[1].records[0]));
    assert!(mirrored(|records| records.truncate(1)).contains(&Kind::Mirrored));
    assert!(mirrored(|records| records[0].headers.clear()).contains(&Kind::Mirrored));
    assert!(mirrored(|records| records.swap(0, 1)).contains(&Kind::Mirrored));
}

#[test]
fn an_acknowledgement_counts_in_its_region_only() {
    let kinds = spoilt(|case| {
        let What::Committed { region, .. } = &mut case.events[2].what else { unreachable!() };
        *region = 1;
    });
    assert_eq!(kinds, [Kind::Acknowledged]);
}

#[test]
fn both_copies_of_an_id_in_one_region_are_one_too_many() {
    let kinds = spoilt(|case| {
        let copy = at(&case.regions[0].sources[1].records[0][1], 9);
        case.regions[0].deduped[0].push(copy.clone());
        case.regions[0].witnessed.push(copy);
    });
    assert!(kinds.contains(&Kind::Published), "{kinds:?}");
}

#[test]
fn a_row_that_only_one_region_has_so_is_found() {
    // The content that this region published, but not the later one.
    let kinds = spoilt(|case| {
        case.regions[0].rows[2] = row(&case.packets, &case.regions[0].sources[0].records[0][2], (2, 0));
    });
    assert_eq!(kinds, [Kind::Stored]);
    assert_eq!(spoilt(|case| drop(case.regions[1].rows.remove(0))), [Kind::Stored]);
}

#[test]
fn a_first_copy_that_the_ledger_does_not_remember_is_found() {
    assert_eq!(spoilt(|case| drop(case.regions[0].ledger[0].pop())), [Kind::Remembered]);
    let other = |case: &mut Case| case.regions[0].ledger[0][4].1 = entry(&case.packets, (2, 1));
    assert_eq!(spoilt(other), [Kind::Remembered]);
    let stranger = |case: &mut Case| {
        case.regions[0].ledger[0].push((Some("south.code.packets.v1".to_owned()), entry(&case.packets, (0, 0))));
    };
    assert_eq!(spoilt(stranger), [Kind::Remembered]);
}

#[test]
fn a_conflict_between_regions_is_one_letter_in_each() {
    assert_eq!(spoilt(|case| drop(case.regions[1].letters[0].pop())), [Kind::DeadLettered]);
    let own = |case: &mut Case| case.regions[0].letters[0][0] = letter(&case.regions[0].sources[0].records[0][2], OWN);
    assert_eq!(spoilt(own), [Kind::DeadLettered]);
}
