//! A deployment that reads its own topic and one that is mirrored from another region.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use coderelay_schemas::dlq;
use coderelay_schemas::headers::REGION;
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::packet_id::PacketId;
use scylla::value::{CqlDate, CqlTimestamp};

use crate::support::{PARTITIONS, Read, Source, World, by_ingest, eventually, gzip, id_of, now_ms, packet};

/// What `region`'s ingest writes of packet `n` at `timestamp`.
fn copy(n: u32, region: &str, timestamp: i64, content: Option<&str>) -> Source {
    let mut packet = packet(n);
    if let Some(content) = content {
        packet.content = gzip(content.as_bytes()).into();
    }
    // As ingest completes a packet without event time.
    packet.created_at = Some(prost_types::Timestamp { seconds: timestamp / 1000, nanos: 0 });
    let mut record = by_ingest(&packet);
    record.timestamp = Some(timestamp);
    for (name, value) in &mut record.headers {
        if *name == REGION {
            region.clone_into(value);
        }
    }
    record
}

/// Everything but the key of a row, and when its content was written.
type Row = (Vec<u8>, BTreeMap<String, String>, CqlTimestamp, CqlTimestamp, Option<String>, i64);

async fn rows(world: &World) -> BTreeMap<(String, u32, Vec<u8>), Row> {
    let keyspace = &world.keyspace;
    let key = format!("SELECT repo_id, day, packet_id FROM {keyspace}.packets");
    let row = format!(
        "SELECT content, metadata, created_at, ingested_at, region, writetime(content) FROM {keyspace}.packets \
         WHERE repo_id = ? AND day = ? AND packet_id = ?"
    );
    let keys = world.session().query_unpaged(key, ()).await.unwrap().into_rows_result().unwrap();
    let mut rows = BTreeMap::new();
    for key in keys.rows::<(String, CqlDate, Vec<u8>)>().unwrap() {
        let (repo, day, id) = key.unwrap();
        let result = world.session().query_unpaged(row.as_str(), (&repo, day, &id)).await.unwrap();
        rows.insert((repo, day.0, id), result.into_rows_result().unwrap().single_row::<Row>().unwrap());
    }
    rows
}

/// What two regions' ingests wrote, in their order.
struct Topics {
    east: Vec<Source>,
    west: Vec<Source>,
}

/// What became of the records in one region.
struct Outcome {
    rows: BTreeMap<(String, u32, Vec<u8>), Row>,
    /// The contents that the dead letters hold, with the region that took them.
    conflicts: Vec<(String, Vec<u8>)>,
}

/// The outcomes of us-east and eu-west, each of which reads its own topic first. `pieces`: a topic is read in so many, and the processor
/// restarted after each.
async fn both(topics: &Topics, ids: &[PacketId], pieces: usize) -> [Outcome; 2] {
    let east = outcome("us-east", &topics.east, "eu-west", &topics.west, ids, pieces).await;
    let west = outcome("eu-west", &topics.west, "us-east", &topics.east, ids, pieces).await;
    [east, west]
}

async fn outcome(
    region: &str,
    own: &[Source],
    other: &str,
    mirrored: &[Source],
    ids: &[PacketId],
    pieces: usize,
) -> Outcome {
    let world = World::new().await;
    let mirror = world.mirror_of(other, PARTITIONS).await;
    let start = || world.processor(region).set("source.topics", format!("{},{mirror}", world.topics.packets)).ready();
    let mut processor = start().await;
    for (topic, records) in [(&world.topics.packets, own), (&mirror, mirrored)] {
        for piece in records.chunks(records.len().div_ceil(pieces)) {
            world.produce_to(topic, piece);
            eventually("the copies are accounted for", async || world.lag_of(topic).await == 0).await;
            if pieces > 1 {
                processor.stop().await;
                processor = start().await;
            }
        }
    }
    processor.stop().await;
    world.assert_exactly_once(ids).await;
    let letters = world.committed(&world.topics.dlq);
    assert!(letters.iter().all(|letter| letter.header(dlq::DLQ_REASON).as_deref() == Some("id_conflict")));
    let conflict = |letter: &Read| (letter.header(REGION).unwrap(), letter.packet().content.to_vec());
    Outcome { rows: rows(&world).await, conflicts: letters.iter().map(conflict).collect() }
}

/// The beginning of this minute: what is timed within a minute of it is of one day, and at most that far ahead of the broker's clock.
fn this_minute() -> i64 {
    now_ms() / 60_000 * 60_000
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_end_with_the_same_rows_whichever_copy_each_saw_first() {
    let now = this_minute();
    // Sent to both regions; sent to both at the same millisecond; the same id for different content; that at the same millisecond.
    let of = |region: &str, lead: i64, content: Option<&str>| {
        let copies = [
            copy(1, region, now + lead, None),
            copy(2, region, now, None),
            copy(3, region, now + lead, content),
            copy(4, region, now, content),
        ];
        copies.to_vec()
    };
    let topics = Topics { east: of("us-east", 0, Some("one")), west: of("eu-west", 5, Some("other")) };
    let ids: Vec<_> = (1..5).map(|n| id_of(&packet(n))).collect();

    let [east, west] = both(&topics, &ids, 1).await;
    for (outcome, other) in [(&east, "eu-west"), (&west, "us-east")] {
        assert_eq!(outcome.conflicts.len(), 2, "the content that was not published is dead-lettered");
        assert!(outcome.conflicts.iter().all(|(region, _)| region == other));
    }
    assert_eq!(east.rows.len(), 4);
    assert_eq!(east.rows, west.rows);
    let later = east.rows.values().filter(|row| row.4.as_deref() == Some("eu-west") && row.5 == (now + 5) * 1000);
    assert_eq!(later.count(), 2, "of copies with different times the later one is kept");
}

/// Ids that are used again within one region: for other content, in the other region too, in both; and for the same content, as by a retry.
/// Each topic is in two halves, and the second uses the ids again.
async fn ids_are_used_again(pieces: usize) {
    let now = this_minute();
    let (east, west) = ("us-east", "eu-west");
    let topics = Topics {
        east: vec![
            copy(1, east, now, Some("first")),
            copy(2, east, now, Some("first")),
            copy(3, east, now, Some("first")),
            copy(4, east, now, None),
            copy(1, east, now + 30, Some("second")),
            copy(2, east, now + 30, Some("second")),
            copy(3, east, now + 30, Some("second")),
            copy(4, east, now + 30, None),
        ],
        west: vec![
            copy(2, west, now + 10, Some("first")),
            copy(3, west, now + 10, Some("third")),
            copy(4, west, now + 10, None),
            copy(2, west, now + 20, Some("fourth")),
            copy(3, west, now + 20, Some("fourth")),
            copy(4, west, now + 20, None),
        ],
    };
    let ids: Vec<_> = (1..5).map(|n| id_of(&packet(n))).collect();
    let stored = [
        (1, gzip(b"first"), east, now),
        (2, gzip(b"first"), west, now + 10),
        (3, gzip(b"third"), west, now + 10),
        (4, packet(4).content.to_vec(), west, now + 10),
    ];
    let expected: BTreeMap<_, _> = stored
        .into_iter()
        .map(|(n, content, region, at)| (packet(n).packet_id.to_vec(), (content, Some(region.to_owned()), at * 1000)))
        .collect();

    let [in_east, in_west] = both(&topics, &ids, pieces).await;
    for outcome in [&in_east, &in_west] {
        let found = outcome.rows.iter().map(|(key, row)| (key.2.clone(), (row.0.clone(), row.4.clone(), row.5)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
    }
    assert_eq!(in_east.rows, in_west.rows);
    // Everything that is not the published content of its id: in the east three second ones, two fourth ones and the third.
    assert_eq!([in_east.conflicts.len(), in_west.conflicts.len()], [6, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_reused_within_a_region_changes_no_row_in_either() {
    ids_are_used_again(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_reused_within_a_region_changes_no_row_in_either_after_restarts() {
    ids_are_used_again(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_entries_of_earlier_releases_were_seen_in_the_regions_own_topic() {
    let world = World::new().await;
    let mirror = world.mirror_of("eu-west", PARTITIONS).await;
    let (now, known) = (this_minute(), packet(1));
    let value = ledger::encode([Entry::new(&known.repo_id, &id_of(&known), &known.content)]);
    let key = Some(known.repo_id.clone().into_bytes());
    world.produce_to(&world.topics.ledger, &[Source { key, value: Some(value), ..Source::default() }]);
    world.produce(&[copy(1, "us-east", now + 20, None)]);
    let processor = world
        .processor("a")
        .set("topics.packets", &world.topics.packets)
        .set("source.topics", format!("{},{mirror}", world.topics.packets))
        .ready()
        .await;
    world.settled().await;
    assert!(rows(&world).await.is_empty(), "a duplicate is not stored");
    world.produce_to(&mirror, &[copy(1, "eu-west", now, None), copy(1, "eu-west", now + 10, None)]);
    eventually("the copies are accounted for", async || world.lag_of(&mirror).await == 0).await;
    processor.stop().await;
    let written: Vec<_> = rows(&world).await.into_values().map(|row| row.5).collect();
    assert_eq!(written, [now * 1000], "the first copy of another topic is");
    assert!(world.committed(&world.topics.deduped).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_added_later_is_picked_up_without_a_restart() {
    let world = World::new().await;
    let pattern = format!(r"^([^.]+\.)?{}$", world.topics.packets.replace('.', r"\."));
    let processor = world
        .processor("a")
        .set("source.topics", pattern)
        .set("kafka.properties.topic.metadata.refresh.interval.ms", 1000)
        .ready()
        .await;
    let records: Vec<_> = (0..50).map(|n| by_ingest(&packet(n))).collect();
    world.produce(&records);
    world.settled().await;

    let mirror = world.mirror_of("eu-west", PARTITIONS).await;
    world.produce_to(&mirror, &records);
    world.produce_to(&mirror, &[by_ingest(&packet(50))]);
    eventually("the new region's records are accounted for", async || world.lag_of(&mirror).await == 0).await;
    processor.stop().await;
    world.assert_exactly_once(&(0..51).map(|n| id_of(&packet(n))).collect::<Vec<_>>()).await;
}

/// Static members keep their partitions while they are away, and those of a new topic would be nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_added_while_every_processor_is_away_is_picked_up_when_they_are_back() {
    let world = World::new().await;
    let pattern = format!(r"^([^.]+\.)?{}$", world.topics.packets.replace('.', r"\."));
    let start = async || {
        let [one, other] = ["a", "b"].map(|instance| {
            // However long a start takes, they are not forgotten meanwhile.
            world.processor(instance).set("source.topics", &pattern).set("group.session_timeout", "20s")
        });
        [one.ready().await, other.ready().await]
    };
    let records: Vec<_> = (0..50).map(|n| by_ingest(&packet(n))).collect();
    let away = start().await;
    world.produce(&records);
    world.settled().await;
    for processor in away {
        processor.process.kill().await.unwrap();
    }

    let mirror = world.mirror_of("eu-west", PARTITIONS).await;
    world.produce_to(&mirror, &records);
    world.produce_to(&mirror, &[by_ingest(&packet(50))]);
    let back = start().await;
    eventually("the new region's records are accounted for", async || world.lag_of(&mirror).await == 0).await;
    for processor in back {
        processor.stop().await;
    }
    world.assert_exactly_once(&(0..51).map(|n| id_of(&packet(n))).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_topic_with_another_number_of_partitions_is_refused_and_nothing_is_processed() {
    let world = World::new().await;
    let mirror = world.mirror_of("eu-west", PARTITIONS + 2).await;
    let processor = world.processor("a").set("source.topics", format!("{},{mirror}", world.topics.packets)).start();
    let record = by_ingest(&packet(1));
    world.produce(std::slice::from_ref(&record));
    let refused = format!("{mirror} has 6 partitions and {} has 4", world.topics.ledger);
    eventually("it says why", async || processor.process.log_tail(500).contains(&refused)).await;
    assert!(processor.process.log_tail(500).contains("make it anew with 4"));
    assert_eq!(world.committed(&world.topics.deduped).len(), 0);
    processor.stop().await;
}
