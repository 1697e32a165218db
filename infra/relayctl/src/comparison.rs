//! What two regions have published and stored, held against each other, without the reading of either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use serde::Serialize;

use crate::position::rfc3339;
use crate::record::created_at_ms;
use crate::store::{Day, StoredPacket};

/// When the packets in question were ingested, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The first of them.
    pub(crate) since: i64,
    /// After the last of them.
    pub(crate) until: i64,
}

impl Window {
    fn contains(self, millis: i64) -> bool {
        (self.since..self.until).contains(&millis)
    }
}

/// What one region has published, by repository and id.
#[derive(Debug, Default)]
pub(crate) struct Published(BTreeMap<(String, PacketId), Sighting>);

#[derive(Debug)]
struct Sighting {
    /// Record timestamp of the first.
    ingested_at: i64,
    created_on: Day,
    fingerprint: u64,
    times: u32,
}

impl Published {
    /// Notes a record of the duplicate-free topic.
    pub(crate) fn add(&mut self, packet: CodePacket, id: PacketId, timestamp: i64) {
        // What cannot be counted in milliseconds is stored as made when it was ingested.
        let created_on = Day::of_millis(created_at_ms(&packet).unwrap_or(timestamp));
        let fingerprint = Entry::new(&packet.repo_id, &id, &packet.content).fingerprint;
        let sighting = Sighting { ingested_at: timestamp, created_on, fingerprint, times: 0 };
        self.0.entry((packet.repo_id, id)).or_insert(sighting).times += 1;
    }

    /// The days under which the store has the packets of `window`.
    pub(crate) fn days(&self, window: Window) -> BTreeSet<(String, Day)> {
        let within = self.0.iter().filter(|(_, seen)| window.contains(seen.ingested_at));
        within.map(|((repo, _), seen)| (repo.clone(), seen.created_on)).collect()
    }
}

/// What one region has dead-lettered, by repository and id, with the reason.
pub(crate) type DeadLettered = BTreeMap<(String, PacketId), String>;

/// Where something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// The duplicate-free topic.
    Topic,
    /// The table of packets.
    Store,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Topic => "topic",
            Self::Store => "store",
        })
    }
}

/// One packet that is not in both regions as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// RFC 3339; the clock of the ingest that took it.
    pub(crate) ingested_at: String,
    /// The region in which it is missing, or published more than once, or the first of two that differ.
    pub(crate) region: String,
    /// Where.
    pub(crate) place: Place,
    /// `missing`, `published 2 times`, or the columns that differ.
    pub(crate) what: String,
    /// Which packet.
    pub(crate) repo_id: String,
    /// Its id, in hexadecimal.
    pub(crate) packet_id: String,
}

/// The comparison of two regions.
#[derive(Debug)]
pub(crate) struct Comparison {
    names: [String; 2],
    window: Window,
    /// Packets of the window that each has published.
    pub(crate) published: [u64; 2],
    /// Rows of the window that each has stored.
    pub(crate) stored: [u64; 2],
    /// Ids that were used for different content in the two regions: by design each has published the one it saw first.
    pub(crate) conflicts: u64,
    /// Packets that a producer was told are taken, and that neither has published or dead-lettered.
    pub(crate) lost: u64,
    /// What is not the same, or not once.
    pub(crate) differences: Vec<Difference>,
}

impl Comparison {
    /// One of these regions, over packets ingested in `window`, that has seen nothing yet.
    pub(crate) fn of(names: [&str; 2], window: Window) -> Self {
        let names = names.map(str::to_owned);
        Self { names, window, published: [0; 2], stored: [0; 2], conflicts: 0, lost: 0, differences: Vec::new() }
    }

    /// Compares what both have published. A packet that is in the window in one region may lie outside of it in the other, which took
    /// another copy.
    pub(crate) fn topics(&mut self, published: &[Published; 2]) {
        let window = self.window;
        for (index, own) in published.iter().enumerate() {
            for (packet, seen) in own.0.iter().filter(|(_, seen)| window.contains(seen.ingested_at)) {
                self.published[index] += 1;
                if seen.times > 1 {
                    self.differ(
                        index,
                        Place::Topic,
                        format!("published {} times", seen.times),
                        packet,
                        seen.ingested_at,
                    );
                }
                match published[1 - index].0.get(packet) {
                    None => self.differ(1 - index, Place::Topic, "missing".into(), packet, seen.ingested_at),
                    // Counted where the first region's copy is within the window, or only the second's.
                    Some(other) if other.fingerprint != seen.fingerprint => {
                        let counted = index == 1 && window.contains(other.ingested_at);
                        self.conflicts += u64::from(!counted);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// Looks for packets that were acknowledged, whenever that was.
    pub(crate) fn receipts(
        &mut self,
        acknowledged: &BTreeSet<(String, PacketId)>,
        published: &[Published; 2],
        dead_lettered: &[DeadLettered; 2],
    ) {
        let unpublished = |packet: &&_| published.iter().all(|published| !published.0.contains_key(packet));
        for packet in acknowledged.iter().filter(unpublished) {
            let mut letters = self.names.iter().zip(dead_lettered);
            let letter = letters.find_map(|(region, letters)| Some((region, letters.get(packet)?)));
            let (region, what) = match letter {
                Some((region, reason)) => (region.clone(), format!("acknowledged, and dead-lettered: {reason}")),
                None => (self.names.join(", "), "acknowledged, and in neither region".to_owned()),
            };
            self.lost += u64::from(letter.is_none());
            self.differences.push(Difference {
                ingested_at: String::new(),
                region,
                place: Place::Topic,
                what,
                repo_id: packet.0.clone(),
                packet_id: packet.1.to_string(),
            });
        }
    }

    /// Compares the rows of one repository and day, in the order of their ids.
    pub(crate) fn stores(&mut self, rows: &[Vec<StoredPacket>; 2]) {
        let mut by_id: BTreeMap<&[u8], [Option<&StoredPacket>; 2]> = BTreeMap::new();
        for (region, rows) in rows.iter().enumerate() {
            for row in rows {
                by_id.entry(&row.packet_id).or_default()[region] = Some(row);
            }
        }
        for (id, found) in by_id {
            let Some(any) = found.into_iter().flatten().find(|row| self.window.contains(ingested_at(row))) else {
                continue;
            };
            let packet = (any.repo_id.clone(), PacketId::from_slice(id).unwrap_or(PacketId([0; 16])));
            for (stored, found) in self.stored.iter_mut().zip(found) {
                *stored += u64::from(found.is_some());
            }
            match found {
                [Some(one), Some(other)] => {
                    let columns = differing(one, other);
                    if !columns.is_empty() {
                        self.differ(0, Place::Store, columns.join(", "), &packet, ingested_at(any));
                    }
                }
                [one, _] => {
                    let missing = usize::from(one.is_some());
                    self.differ(missing, Place::Store, "missing".into(), &packet, ingested_at(any));
                }
            }
        }
    }

    fn differ(&mut self, region: usize, place: Place, what: String, packet: &(String, PacketId), ingested_at: i64) {
        self.differences.push(Difference {
            ingested_at: rfc3339(Some(ingested_at)),
            region: self.names[region].clone(),
            place,
            what,
            repo_id: packet.0.clone(),
            packet_id: packet.1.to_string(),
        });
    }
}

fn ingested_at(row: &StoredPacket) -> i64 {
    row.ingested_at.map_or(0, |at| at.0)
}

/// The columns in which two rows of one packet differ.
fn differing(one: &StoredPacket, other: &StoredPacket) -> Vec<&'static str> {
    let columns = [
        ("content", one.content == other.content),
        ("metadata", one.metadata == other.metadata),
        ("created_at", one.created_at == other.created_at),
        ("ingested_at", one.ingested_at == other.ingested_at),
        ("region", one.region == other.region),
    ];
    columns.into_iter().filter(|(_, equal)| !equal).map(|(column, _)| column).collect()
}

#[cfg(test)]
mod tests {
    use scylla::value::{CqlDate, CqlTimestamp};

    use super::*;

    const WINDOW: Window = Window { since: 1_000, until: 2_000 };

    fn comparison() -> Comparison {
        Comparison::of(["us-east", "eu-west"], WINDOW)
    }

    fn published(packets: &[(u8, &'static [u8], i64)]) -> Published {
        let mut published = Published::default();
        for (id, content, timestamp) in packets {
            let packet = CodePacket { repo_id: "repo".into(), content: (*content).into(), ..CodePacket::default() };
            published.add(packet, PacketId([*id; 16]), *timestamp);
        }
        published
    }

    fn row(id: u8, content: &[u8], ingested_at: i64) -> StoredPacket {
        StoredPacket {
            repo_id: "repo".into(),
            day: CqlDate(1 << 31),
            packet_id: vec![id; 16],
            content: content.to_vec(),
            metadata: None,
            created_at: Some(CqlTimestamp(0)),
            ingested_at: Some(CqlTimestamp(ingested_at)),
            region: Some("us-east".into()),
        }
    }

    fn said(comparison: &Comparison) -> Vec<String> {
        let say = |difference: &Difference| {
            let Difference { region, place, what, packet_id, .. } = difference;
            format!("{region} {place} {what} {}", &packet_id[..2])
        };
        comparison.differences.iter().map(say).collect()
    }

    #[test]
    fn what_is_missing_or_doubled_is_named_and_copies_from_before_the_window_count() {
        let mut comparison = comparison();
        let east = published(&[(1, b"a", 1_000), (2, b"a", 1_500), (3, b"a", 900), (4, b"a", 1_999), (4, b"a", 1_999)]);
        let west = published(&[(1, b"a", 990), (3, b"a", 1_100), (4, b"a", 2_500), (5, b"a", 2_000)]);
        comparison.topics(&[east, west]);
        assert_eq!(said(&comparison), ["eu-west topic missing 02", "us-east topic published 2 times 04"]);
        assert_eq!(comparison.published, [3, 1]);
    }

    #[test]
    fn a_packet_of_any_time_has_a_day() {
        let mut published = Published::default();
        for (id, seconds) in [(1, i64::MIN), (2, -1), (3, 1_000_000_000_000), (4, i64::MAX)] {
            let mut packet = CodePacket { repo_id: "repo".into(), ..CodePacket::default() };
            packet.created_at.get_or_insert_default().seconds = seconds;
            published.add(packet, PacketId([id; 16]), 1_000);
        }
        let days: Vec<_> = published.days(WINDOW).into_iter().map(|(_, day)| day).collect();
        assert_eq!(
            days,
            [-1, 1_000, 1_000_000_000_000_000].map(Day::of_millis),
            "ingested, where it cannot be counted"
        );
    }

    #[test]
    fn a_packet_that_was_acknowledged_and_is_nowhere_is_lost_and_a_dead_letter_is_not() {
        let mut comparison = comparison();
        let published = [published(&[(1, b"a", 1_000)]), published(&[(2, b"a", 5)])];
        let packet = |id| ("repo".to_owned(), PacketId([id; 16]));
        let dead_lettered = [[].into(), [1, 4].map(|id| (packet(id), "expired".to_owned())).into()];
        comparison.receipts(&[1, 2, 3, 4].map(packet).into(), &published, &dead_lettered);
        assert_eq!(comparison.lost, 1);
        let expected = [
            "us-east, eu-west topic acknowledged, and in neither region 03",
            "eu-west topic acknowledged, and dead-lettered: expired 04",
        ];
        assert_eq!(said(&comparison), expected);
    }

    #[test]
    fn an_id_with_two_contents_is_counted_once_and_is_no_difference() {
        let mut comparison = comparison();
        comparison
            .topics(&[published(&[(1, b"a", 1_000), (2, b"a", 5)]), published(&[(1, b"b", 1_001), (2, b"b", 1_001)])]);
        assert_eq!((comparison.conflicts, said(&comparison).len()), (2, 0));
    }

    #[test]
    fn rows_are_compared_column_by_column() {
        let mut comparison = comparison();
        let east = vec![row(1, b"a", 1_000), row(2, b"a", 1_000), row(3, b"a", 1_000), row(9, b"a", 1)];
        let mut other = row(3, b"b", 1_001);
        other.region = None;
        let west = vec![row(1, b"a", 1_000), other, row(4, b"a", 1_000), row(9, b"b", 1)];
        comparison.stores(&[east, west]);
        let expected =
            ["eu-west store missing 02", "us-east store content, ingested_at, region 03", "us-east store missing 04"];
        assert_eq!(said(&comparison), expected);
        assert_eq!(comparison.stored, [3, 3]);
    }
}
