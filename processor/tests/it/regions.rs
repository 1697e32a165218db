//! A deployment that reads its own topic and one that is mirrored from another region.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use coderelay_schemas::dlq;
use coderelay_schemas::headers::REGION;
use scylla::value::{CqlDate, CqlTimestamp};

use crate::support::{PARTITIONS, Source, World, by_ingest, eventually, gzip, id_of, now_ms, packet};

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

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_end_with_the_same_rows_whichever_copy_each_saw_first() {
    let now = now_ms() / 86_400_000 * 86_400_000 + 43_200_000;
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
    let (east, west) = (of("us-east", 0, Some("one")), of("eu-west", 5, Some("other")));
    let ids: Vec<_> = (1..5).map(|n| id_of(&packet(n))).collect();

    let mut stores = Vec::new();
    for (region, other, own, mirrored) in [("us-east", "eu-west", &east, &west), ("eu-west", "us-east", &west, &east)] {
        let world = World::new().await;
        let mirror = world.mirror_of(other, PARTITIONS).await;
        let processor = world.processor(region).set("source.topics", format!("{},{mirror}", world.topics.packets));
        let processor = processor.ready().await;
        world.produce(own);
        world.settled().await;
        world.produce_to(&mirror, mirrored);
        eventually("the copies are accounted for", async || world.lag_of(&mirror).await == 0).await;
        processor.stop().await;

        world.assert_exactly_once(&ids).await;
        let letters = world.committed(&world.topics.dlq);
        assert_eq!(letters.len(), 2, "the content that was not published is dead-lettered");
        for letter in letters {
            assert_eq!(letter.header(dlq::DLQ_REASON).as_deref(), Some("id_conflict"));
            assert_eq!(letter.header(REGION).as_deref(), Some(other));
        }
        stores.push(rows(&world).await);
    }
    assert_eq!(stores[0].len(), 4);
    assert_eq!(stores[0], stores[1]);
    let later = stores[0].values().filter(|row| row.4.as_deref() == Some("eu-west") && row.5 == (now + 5) * 1000);
    assert_eq!(later.count(), 2, "of copies with different times the later one is kept");
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
