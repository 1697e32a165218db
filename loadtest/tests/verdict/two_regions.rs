//! Two regions that mirror each other: there is no order between their topics, and both stores are to end with the same rows.

use loadtest::chaos::evidence::{Evidence, Source};
use loadtest::chaos::history::Event;
use loadtest::chaos::packets::Packets;
use loadtest::chaos::topic::Record;
use loadtest::chaos::verdict::{Kind, judge};

use crate::records::{self, TOPIC, at, committed, entry, kinds, packets, row, version};

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
        Self::apart(10)
    }

    /// Where eu-west's clock is so many milliseconds ahead of us-east's.
    fn apart(ahead: i64) -> Self {
        let packets = packets();
        let sent = [vec![version(0, 0), version(1, 0), version(2, 0)], vec![version(1, 0), version(2, 1)]];
        let [east, west] = [0, 1].map(|region: usize| {
            let sent = (0..).zip(&sent[region]);
            let later = ahead * region as i64;
            let records = sent
                .map(|(offset, version)| records::record(&packets, NAMES[region], offset, offset + later, *version));
            records.collect::<Vec<_>>()
        });
        let twice = [west.clone(), vec![at(&west[0], 2)]].concat();
        let rows = vec![
            row(&packets, &east[0], version(0, 0)),
            row(&packets, &west[0], version(1, 0)),
            row(&packets, &west[1], version(2, 1)),
        ];
        // Of an id that was seen before, the ledger has the content that was published.
        let ledger = |number: usize| -> Vec<_> {
            let own = sent[number].iter().map(|version| entry(&packets, TOPIC, *version));
            let published = |packet| sent[number].iter().find(|version| version.packet == packet);
            let other = sent[1 - number].iter().map(|sent| published(sent.packet).unwrap_or(sent));
            own.chain(other.map(|version| entry(&packets, &mirrored(number), *version))).collect()
        };
        let region = |number: usize, own: &[Record], copies: &[Record], deduped: Vec<Record>, refused| Evidence {
            region: Some(NAMES[number].to_owned()),
            sources: vec![source(TOPIC, own), source(&mirrored(number), copies)],
            expires: false,
            mirrored_in_order: true,
            witnessed: deduped.clone(),
            deduped: vec![deduped],
            letters: vec![vec![letter(refused, &mirrored(number))]],
            ledger: vec![ledger(number)],
            rows: rows.clone(),
        };
        let published = vec![at(&east[0], 0), at(&west[0], 1), at(&west[1], 2)];
        let regions =
            vec![region(0, &east, &twice, east.clone(), &west[1]), region(1, &west, &east, published, &east[2])];
        let events = sent.iter().enumerate().flat_map(|(region, versions)| {
            (0..).zip(versions).map(move |(offset, version)| committed(*version, region, offset))
        });
        let events = events.collect();
        Self { packets, events, regions }
    }

    /// The promises that are broken.
    fn verdict(&self) -> Vec<Kind> {
        kinds(judge(&self.packets, &self.events, &self.regions).unwrap())
    }
}

/// The topic of the other region in region `number`.
fn mirrored(number: usize) -> String {
    format!("{}.{TOPIC}", NAMES[1 - number])
}

fn source(topic: &str, records: &[Record]) -> Source {
    Source { topic: topic.to_owned(), records: vec![records.to_vec()] }
}

fn letter(record: &Record, topic: &str) -> Record {
    records::letter(record, topic, "id_conflict")
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
    let unordered = |spoil: fn(&mut Vec<Record>)| {
        spoilt(|case| {
            case.regions[0].mirrored_in_order = false;
            spoil(&mut case.regions[0].sources[1].records[0]);
        })
    };
    assert!(unordered(|records| records.truncate(1)).contains(&Kind::Mirrored), "also where there is no order to keep");
    assert!(!unordered(|records| records.swap(0, 1)).contains(&Kind::Mirrored));
}

#[test]
fn an_acknowledgement_counts_in_its_region_only() {
    let kinds = spoilt(|case| case.events[2] = committed(version(2, 0), 1, 2));
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
        case.regions[0].rows[2] = row(&case.packets, &case.regions[0].sources[0].records[0][2], version(2, 0));
    });
    assert_eq!(kinds, [Kind::Stored]);
    assert_eq!(spoilt(|case| drop(case.regions[1].rows.remove(0))), [Kind::Stored]);
}

#[test]
fn of_rows_that_were_written_at_once_each_column_is_the_larger() {
    let mut case = Case::apart(1);
    let west = case.regions[1].sources[0].records[0].clone();
    let contents = [0, 1].map(|content| row(&case.packets, &west[1], version(2, content)));
    let larger = contents.into_iter().max_by_key(|(_, row)| row.content.clone()).unwrap();
    for region in &mut case.regions {
        region.rows[1] = row(&case.packets, &west[0], version(1, 0));
        region.rows[2] = larger.clone();
    }
    assert_eq!(case.verdict(), []);
    case.regions[1].rows[1].1.region = Some("east".into());
    assert_eq!(case.verdict(), [Kind::Stored]);
}

#[test]
fn a_first_copy_that_the_ledger_does_not_remember_is_found() {
    assert_eq!(spoilt(|case| drop(case.regions[0].ledger[0].pop())), [Kind::Remembered]);
    let other = |case: &mut Case| case.regions[0].ledger[0][4] = entry(&case.packets, &mirrored(0), version(2, 1));
    assert_eq!(spoilt(other), [Kind::Remembered]);
    let stranger = |case: &mut Case| {
        case.regions[0].ledger[0].push(entry(&case.packets, "south.code.packets.v1", version(0, 0)));
    };
    assert_eq!(spoilt(stranger), [Kind::Remembered]);
}

#[test]
fn a_conflict_between_regions_is_one_letter_in_each() {
    assert_eq!(spoilt(|case| drop(case.regions[1].letters[0].pop())), [Kind::DeadLettered]);
    let own =
        |case: &mut Case| case.regions[0].letters[0][0] = letter(&case.regions[0].sources[0].records[0][2], TOPIC);
    assert_eq!(spoilt(own), [Kind::DeadLettered]);
}
