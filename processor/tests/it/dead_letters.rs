//! Every reason for the dead-letter topic, and that the neighbours are stored.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use coderelay_devstack::RawRecord;
use coderelay_schemas::{cql, dlq, headers, pb};
use prost::Message as _;

use crate::support::{Read, Source, World, batch, by_ingest, eventually, gzip, id_of, now_ms, packet};

fn unchecked(packet: &pb::CodePacket) -> Source {
    Source { headers: vec![], ..by_ingest(packet) }
}

fn with_content(n: u32, content: Vec<u8>) -> Source {
    let mut packet = packet(n);
    packet.content = Bytes::from(content);
    unchecked(&packet)
}

/// Relays `bad` between two good packets and returns its dead letters.
async fn dead_letters(bad: &[Source], settings: &[(&str, &str)]) -> Vec<Read> {
    let world = World::new().await;
    let good = [packet(1), packet(2)];
    let records: Vec<_> =
        [by_ingest(&good[0])].into_iter().chain(bad.iter().cloned()).chain([by_ingest(&good[1])]).collect();
    world.produce(&records);
    let builder = world.processor("a");
    let processor = settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value)).ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&good.each_ref().map(id_of)).await;
    world.committed(&world.topics.dlq)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_are_dead_lettered_untouched_each_with_its_reason() {
    let mut corrupt = gzip(&[b'x'; 1000]);
    let middle = corrupt.len() - 6;
    corrupt[middle] ^= 0xff;
    let mut truncated = gzip(&[b'y'; 1000]);
    truncated.truncate(truncated.len() - 9);
    let mut wrong_id = packet(20);
    wrong_id.packet_id = Bytes::from_static(b"fifteen bytes..");
    let mut control = packet(21);
    control.repo_id = "a\nb".into();
    let cases: Vec<(&str, Source)> = vec![
        ("decode_error", Source { value: Some(vec![0xff; 20]), ..by_ingest(&packet(10)) }),
        ("invalid_packet", Source { value: None, ..by_ingest(&packet(11)) }),
        ("invalid_packet", Source { key: None, ..by_ingest(&packet(12)) }),
        ("invalid_packet", Source { key: Some(b"another".to_vec()), ..by_ingest(&packet(13)) }),
        ("invalid_packet", by_ingest(&wrong_id)),
        ("invalid_packet", by_ingest(&control)),
        ("gzip_corrupt", with_content(14, corrupt)),
        ("gzip_corrupt", with_content(15, truncated)),
        ("gzip_corrupt", with_content(16, b"not gzip at all".to_vec())),
        ("gzip_bomb", with_content(17, gzip(&vec![0; 10_000_000]))),
        ("too_large", with_content(18, vec![0; 4 * 1024 * 1024 + 1])),
    ];
    let bad: Vec<_> = cases.iter().map(|(_, source)| source.clone()).collect();
    let dead = dead_letters(&bad, &[]).await;
    assert_eq!(dead.len(), cases.len());
    let mut reasons: BTreeMap<Option<Vec<u8>>, &str> = BTreeMap::new();
    for (reason, source) in &cases {
        reasons.insert(source.value.clone(), reason);
    }
    for letter in &dead {
        let (reason, source) =
            cases.iter().find(|(_, source)| source.value == letter.value && source.key == letter.key).unwrap();
        assert_eq!(letter.header(dlq::DLQ_REASON).as_deref(), Some(*reason), "{:?}", letter.header(dlq::DLQ_DETAIL));
        assert!(!letter.header(dlq::DLQ_DETAIL).unwrap().is_empty());
        assert!(letter.header(dlq::DLQ_TOPIC).unwrap().starts_with("code.packets.v1"));
        assert_eq!(letter.header(dlq::DLQ_PARTITION), Some(letter.partition.to_string()));
        assert_eq!(letter.header(dlq::DLQ_TIMESTAMP), source.timestamp.map(|timestamp| timestamp.to_string()));
        assert_eq!(letter.header(dlq::DLQ_ATTEMPTS).as_deref(), Some("0"));
        for (name, value) in &source.headers {
            assert_eq!(letter.header(name).as_ref(), Some(value), "original headers are kept");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_to_be_copied_is_pointed_at_by_its_dead_letter() {
    // Compressed it is a few kilobytes, and brokers judge the compressed size.
    let huge = Source { value: Some(vec![0; 8 << 20]), ..by_ingest(&packet(50)) };
    let dead = dead_letters(&[huge], &[]).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header(dlq::DLQ_REASON).as_deref(), Some("too_large"));
    assert_eq!(dead[0].value, None);
    assert!(dead[0].header(dlq::DLQ_OFFSET).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_key_and_headers_alone_are_too_large_stops_nothing() {
    let headers = vec![("small", "kept".to_owned()), ("huge", "h".repeat(8 << 20))];
    let huge_headers = Source { headers, ..by_ingest(&packet(51)) };
    let huge_key = Source { key: Some(vec![b'k'; 8 << 20]), ..by_ingest(&packet(52)) };
    let dead = dead_letters(&[huge_headers, huge_key], &[]).await;
    assert_eq!(dead.len(), 2);
    for letter in &dead {
        let detail = letter.header(dlq::DLQ_DETAIL).unwrap();
        let left_out = if letter.key.is_some() { "the largest 1 of 2 headers" } else { "the key (8388608 bytes)" };
        assert!(detail.contains(left_out), "{detail}");
        assert!(letter.header(dlq::DLQ_OFFSET).is_some() && letter.header("huge").is_none());
    }
    assert!(dead.iter().any(|letter| letter.header("small").as_deref() == Some("kept")));
    assert!(dead.iter().any(|letter| letter.header(headers::PACKET_ID).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_reused_with_other_content_is_a_conflict_also_across_a_restart() {
    let world = World::new().await;
    let first = packet(1);
    let mut second = packet(1);
    second.content = gzip(b"something else").into();
    let mut third = packet(1);
    third.content = gzip(b"and again").into();
    world.produce(&[by_ingest(&first), by_ingest(&second)]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.produce(&[by_ingest(&third)]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;

    world.assert_exactly_once(&[id_of(&first)]).await;
    let dead = world.committed(&world.topics.dlq);
    assert_eq!(dead.len(), 2);
    assert!(dead.iter().all(|letter| letter.header(dlq::DLQ_REASON).as_deref() == Some("id_conflict")));
    let contents: Vec<_> = dead.iter().map(|letter| letter.packet().content).collect();
    assert_eq!(contents, [second.content, third.content], "both contents can be recovered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_the_store_refuses_is_dead_lettered_and_its_batch_goes_on() {
    // A CQL partition key cannot exceed 64 KiB; limits that allow such a repo_id let it through to the store.
    let mut long = packet(30);
    long.repo_id = "r".repeat(70_000);
    let dead = dead_letters(&[by_ingest(&long)], &[("limits.repo_id_max", "100KiB")]).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header(dlq::DLQ_REASON).as_deref(), Some("store_rejected"));
    assert_ne!(dead[0].header(dlq::DLQ_ATTEMPTS).as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_every_row_from_the_start_is_away_although_it_can_be_read() {
    let world = World::new().await;
    let processor = world.processor("a").ready().await;
    // No gzip is text: the server refuses the content of every packet, with the error that it has for a bad row.
    let right = cql::create_table(&world.keyspace);
    let wrong = right.replace("content     blob", "content     text");
    assert_ne!(right, wrong);
    let replace_table = async |table: String| {
        for statement in [format!("DROP TABLE {}.packets", world.keyspace), table] {
            world.session().query_unpaged(statement, ()).await.unwrap();
        }
    };
    replace_table(wrong).await;
    let (records, ids) = batch(0..50);
    world.produce(&records);
    eventually("the processor is not ready", async || processor.process.is_ready().await.is_err()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    processor.process.is_ready().await.unwrap_err();
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);

    replace_table(right).await;
    world.settled().await;
    processor.process.ready().await.unwrap();
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_whose_name_is_not_utf_8_hinders_nobody() {
    let world = World::new().await;
    let packets = [packet(1), packet(2), packet(3)];
    world.produce(&[by_ingest(&packets[0])]);
    let (key, value) = (packets[1].repo_id.as_bytes(), packets[1].encode_to_vec());
    let headers = [(&b"caf\xe9"[..], &b"latin-1"[..])];
    let record = RawRecord {
        topic: &world.topics.packets,
        partition: 0,
        key,
        value: &value,
        headers: &headers,
        timestamp: now_ms(),
    };
    record.write(&world.stack().bootstrap_servers()).unwrap();
    world.produce(&[by_ingest(&packets[2])]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&[id_of(&packets[0]), id_of(&packets[2])]).await;
    let dead = world.committed(&world.topics.dlq);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].value.as_deref(), Some(&value[..]));
    assert_eq!(dead[0].header(dlq::DLQ_REASON).as_deref(), Some("invalid_packet"));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_expire_only_when_asked_to_and_only_over_the_backlog() {
    let old = || Source { timestamp: Some(now_ms() - 3_600_000), ..by_ingest(&packet(40)) };
    let fresh = |range: std::ops::Range<u32>| range.map(|n| by_ingest(&packet(n))).collect::<Vec<_>>();

    // The old record comes when others wait behind it, and late enough that the backlog is known.
    let world = World::new().await;
    world.produce(&fresh(100..300));
    world.produce(&[old()]);
    world.produce(&fresh(300..500));
    let settings = [("expiry.enabled", "true"), ("expiry.backlog", "0"), ("kafka.statistics_interval", "100ms")];
    let builder = world.processor("a").set("batch.max_records", 1).set("pace.ceiling", 100).set("group.workers", 1);
    let processor = settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value)).ready().await;
    let waiting = async || world.metric(&processor, "queue_depth", &world.topics.packets).await;
    eventually("the backlog is known", async || waiting().await > 0.0).await;
    world.settled().await;
    eventually("the backlog is gone", async || waiting().await < 0.5).await;
    processor.stop().await;
    let dead = world.committed(&world.topics.dlq);
    assert_eq!(dead.len(), 1, "only the old one expires");
    assert_eq!(dead[0].header(dlq::DLQ_REASON).as_deref(), Some("expired"));
    assert!(dead[0].header(headers::PACKET_ID).is_some());
    assert_eq!(world.rows().await.len(), 400);

    // Off by default.
    let world = World::new().await;
    world.produce(&[old()]);
    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
    assert_eq!(world.rows().await.len(), 1);
}
