//! The good path: stored once, published once, byte for byte; memory over restarts.

use coderelay_schemas::{cql, headers, pb};
use prost::Message;
use scylla::value::{CqlDate, CqlTimestamp};

use crate::support::{Source, World, batch, by_ingest, gzip, id_of, packet};

/// The columns of `select_packet`.
type Columns = (
    String,
    CqlDate,
    Vec<u8>,
    Vec<u8>,
    std::collections::BTreeMap<String, String>,
    CqlTimestamp,
    CqlTimestamp,
    Option<String>,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_is_stored_and_published_byte_for_byte() {
    let world = World::new().await;
    let packet = packet(1);
    let source = by_ingest(&packet);
    world.produce(std::slice::from_ref(&source));
    let processor = world.processor("a").ready().await;
    world.settled().await;

    let published = world.committed(&world.topics.deduped);
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].value, source.value);
    assert_eq!(published[0].key, source.key);
    assert_eq!(published[0].timestamp, source.timestamp);
    let expected: Vec<_> =
        source.headers.iter().map(|(k, v)| ((*k).to_owned(), Some(v.clone().into_bytes()))).collect();
    assert_eq!(published[0].headers, expected);

    let timestamp = source.timestamp.unwrap();
    let day = CqlDate(((timestamp / 86_400_000) + (1 << 31)) as u32);
    let key = (packet.repo_id.as_str(), day, &packet.packet_id[..]);
    let result = world.session().query_unpaged(cql::select_packet(&world.keyspace), key).await.unwrap();
    let row: Columns = result.into_rows_result().unwrap().single_row().unwrap();
    assert_eq!((row.0, row.3, row.4), (packet.repo_id.clone(), packet.content.to_vec(), packet.metadata.clone()));
    assert_eq!((row.6, row.7), (CqlTimestamp(timestamp), Some("us-east".to_owned())));
    assert_eq!(world.rows().await[&packet.packet_id.to_vec()], timestamp * 1000, "write time is the record's");
    processor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_removed_within_a_batch_between_batches_and_across_a_restart() {
    let world = World::new().await;
    let (records, ids) = batch(0..300);
    let twice: Vec<_> = records.iter().chain(&records).cloned().collect();
    world.produce(&twice);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    world.produce(&records);
    world.settled().await;
    assert!((world.metric(&processor, "coderelay_processor_records_total", "duplicate").await - 600.0).abs() < 0.5);
    processor.stop().await;

    let processor = world.processor("a").ready().await;
    world.produce(&records);
    world.settled().await;
    assert!((world.metric(&processor, "coderelay_processor_records_total", "duplicate").await - 300.0).abs() < 0.5);
    assert!((world.metric(&processor, "coderelay_ledger_replay_entries_total", "").await - 300.0).abs() < 0.5);
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_without_id_time_or_headers_is_verified_and_stored_once() {
    let world = World::new().await;
    let bare = pb::CodePacket {
        repo_id: "github.com/acme/bare".into(),
        content: gzip(b"main()").into(),
        ..Default::default()
    };
    let record =
        Source { key: Some(b"github.com/acme/bare".to_vec()), value: Some(bare.encode_to_vec()), ..Default::default() };
    world.produce(&[record.clone(), record]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    let published = world.committed(&world.topics.deduped);
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].value, Some(bare.encode_to_vec()), "published as it came");
    assert_eq!(published[0].header(headers::CHECKED), None);
    assert_eq!(world.rows().await.len(), 1);
    processor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_and_doubles_nothing() {
    let world = World::new().await;
    let (records, ids) = batch(0..6000);
    let (first, rest) = records.split_at(2000);
    world.produce(first);
    for chunk in rest.chunks(1000) {
        let processor = world.processor("a").set("batch.max_records", 50).set("pace.ceiling", 300).ready().await;
        world.produce(chunk);
        processor.stop().await;
        assert!(world.lag().await > 0, "it was stopped in the middle of its work");
    }
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_with_the_same_content_is_one_packet_whatever_else_differs() {
    let world = World::new().await;
    let mut first = packet(1);
    first.packet_id = vec![7; 16].into();
    let mut second = first.clone();
    second.metadata.insert("attempt".into(), "2".into());
    world.produce(&[by_ingest(&first), by_ingest(&second)]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&[id_of(&first)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_travels_together_also_where_nothing_waits_for_company() {
    let world = World::new().await;
    let (records, ids) = batch(0..2000);
    world.produce(&records);
    let processor = world.processor("a").set("group.workers", 1).set("batch.linger", "0s").ready().await;
    world.settled().await;
    let batches = world.metric(&processor, "coderelay_processor_batch_records_count", "").await;
    assert!(batches < 500.0, "{batches} batches");
    world.assert_exactly_once(&ids).await;
}
