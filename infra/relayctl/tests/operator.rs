//! The verbs against a real Kafka and a real CQL server.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

mod support;

use std::time::{Duration, SystemTime};

use coderelay_devstack::RawRecord;
use coderelay_schemas::{cql, headers, ledger, packet_id::PacketId, pb::CodePacket};
use prost::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use relayctl::Exit;
use serde_json::Value;
use support::{Deployment, gzip, packet};

const DAY_MS: i64 = 86_400_000;

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_planned_created_and_never_repartitioned() {
    let deployment = Deployment::without_topics("topics").await;

    let (exit, plan) = deployment.json(&["topics", "apply", "--partitions", "3", "--dry-run"]).await;
    assert_eq!((exit, plan[0].as_array().unwrap().len()), (Exit::Success, 5));
    assert_eq!(
        deployment.run(&["topics", "diff", "--partitions", "3"]).await.0,
        Exit::Partial,
        "a dry run changes nothing"
    );

    assert_eq!(deployment.run(&["topics", "apply", "--partitions", "3"]).await.0, Exit::Success);
    deployment.settled().await;
    let (exit, text) = deployment.run(&["topics", "diff", "--partitions", "3"]).await;
    assert_eq!(exit, Exit::Success, "{text}");
    assert_eq!(deployment.run(&["topics", "apply", "--partitions", "3"]).await.0, Exit::Success, "a second time");

    let (exit, plan) = deployment.json(&["topics", "apply", "--partitions", "6"]).await;
    assert_eq!(exit, Exit::Failure);
    assert!(plan[0].as_array().unwrap().iter().all(|change| change["action"] == "refuse"));

    let (_, list) = deployment.json(&["topics", "list"]).await;
    let row = list[0].as_array().unwrap().iter().find(|row| row["topic"] == deployment.topics.dlq.as_str()).unwrap();
    assert_eq!((row["partitions"].as_i64(), row["retention"].as_str()), (Some(3), Some("30days")));
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_mends_a_setting_and_keeps_those_of_others() {
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
    let deployment = Deployment::new("mend").await;
    let admin: AdminClient<_> = deployment.kafka().create().unwrap();
    let resource = || ResourceSpecifier::Topic(&deployment.topics.packets);
    // The controller has answered before the broker knows.
    let until_retention_is = async |expected: &str| {
        for _ in 0..100 {
            let described = admin.describe_configs([&resource()], &AdminOptions::new()).await.unwrap().remove(0);
            let described = described.unwrap();
            if described.get("retention.ms").unwrap().value.as_deref() == Some(expected) {
                return described;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the retention did not become {expected} ms");
    };
    let altered = AlterConfig::new(resource()).set("retention.ms", "1000").set("flush.messages", "77");
    admin.alter_configs([&altered], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    until_retention_is("1000").await;

    let (exit, _) = deployment.run(&["topics", "apply", "--partitions", "3"]).await;
    assert_eq!(exit, Exit::Success);
    let described = until_retention_is("604800000").await;
    assert_eq!(described.get("flush.messages").unwrap().value.as_deref(), Some("77"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_decodes_filters_and_starts_where_told() {
    let deployment = Deployment::new("tail").await;
    for n in 0..5 {
        let repo = if n % 2 == 0 { "even" } else { "odd" };
        deployment.produce(&deployment.topics.packets, 1, &packet(repo, &format!("content {n}"))).await;
    }

    let (exit, records) = deployment.json(&["tail", "--topic", "packets", "--content"]).await;
    assert_eq!((exit, records.len()), (Exit::Success, 5));
    assert_eq!(records[3]["packet"]["content"], "content 3");
    assert_eq!(records[3]["headers"]["schema"], headers::SCHEMA_CODE_PACKET);

    let offsets = |records: &[Value]| records.iter().map(|r| r["offset"].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(offsets(&deployment.json(&["tail", "--topic", "packets", "--repo", "odd"]).await.1), [1, 3]);
    assert_eq!(offsets(&deployment.json(&["tail", "--topic", "packets", "--from", "-2"]).await.1), [3, 4]);
    assert_eq!(
        offsets(&deployment.json(&["tail", "--topic", "packets", "--from", "2", "--limit", "2"]).await.1),
        [2, 3]
    );
    assert_eq!(offsets(&deployment.json(&["tail", "--topic", "packets", "--from", "1h"]).await.1), [0, 1, 2, 3, 4]);
    assert_eq!(deployment.json(&["tail", "--topic", "packets", "--from", "latest"]).await.1, Vec::<Value>::new());

    // Any client may write a header name that is not UTF-8.
    let (key, value) = (b"odd", packet("odd", "foreign").encode_to_vec());
    let headers = [(&b"caf\xe9"[..], &b"latin-1"[..]), (b"region", b"us-east")];
    let topic = &deployment.topics.packets;
    let record = RawRecord { topic, partition: 1, key, value: &value, headers: &headers, timestamp: now() };
    record.write(&deployment.kafka).unwrap();
    let shown = &deployment.json(&["tail", "--topic", "packets", "--from", "-1"]).await.1[0];
    assert_eq!((&shown["offset"], &shown["headers"]["region"]), (&5.into(), &"us-east".into()));

    let (exit, text) = deployment.run(&["tail", "--topic", "packets", "--limit", "1"]).await;
    assert!(exit == Exit::Success && text.contains("1@0") && text.contains("src/lib.rs"), "{text}");
    assert_eq!(deployment.run(&["tail", "--topic", "no.such.topic"]).await.0, Exit::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_ledger_entries_and_nothing_of_an_aborted_transaction() {
    let deployment = Deployment::new("ledger").await;
    let id = PacketId([7; 16]);
    let value = ledger::encode([ledger::Entry::new("team/relay", &id, b"content")]);
    let producer: FutureProducer =
        deployment.kafka().set("transactional.id", "relayctl-test").create().expect("a transactional producer");
    tokio::task::block_in_place(|| producer.init_transactions(Duration::from_secs(30))).unwrap();
    for commit in [false, true] {
        producer.begin_transaction().unwrap();
        let record = FutureRecord::<[u8], _>::to(&deployment.topics.ledger).partition(0).payload(&value);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
        let end = if commit { FutureProducer::commit_transaction } else { FutureProducer::abort_transaction };
        tokio::task::block_in_place(|| end(&producer, Duration::from_secs(30))).unwrap();
    }

    let (exit, records) = deployment.json(&["tail", "--topic", "ledger"]).await;
    assert_eq!((exit, records.len()), (Exit::Success, 1), "the aborted record is invisible, its marker no record");
    let entry = ledger::Entry::new("team/relay", &id, b"content");
    assert_eq!(records[0]["ledger"][0]["key"], format!("{:032x}", entry.key));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_and_go_back_where_they_came_from() {
    let deployment = Deployment::new("dlq").await;
    let expired = packet("team/relay", "too late");
    deployment.dead_letter(&expired, "expired", 2).await;
    deployment.dead_letter(&packet("team/relay", "conflict"), "id_conflict", 2).await;
    deployment.dead_letter(&packet("other", "bomb"), "gzip_bomb", 0).await;

    let (_, all) = deployment.json(&["dlq", "list"]).await;
    assert_eq!(all.len(), 3);
    let (_, some) = deployment.json(&["dlq", "list", "--reason", "expired", "--since", "1h"]).await;
    assert_eq!((some.len(), some[0]["source_offset"].as_i64()), (1, Some(41)));
    assert!(deployment.json(&["dlq", "list", "--until", "1h"]).await.1.is_empty());

    let place = format!("{}@{}", some[0]["partition"], some[0]["offset"]);
    let (exit, shown) = deployment.json(&["dlq", "show", &place]).await;
    assert_eq!((exit, shown[0]["packet"]["content"].as_str()), (Exit::Success, Some("too late")));
    assert_eq!(deployment.run(&["dlq", "show", "0@999"]).await.0, Exit::NotFound);

    let (exit, plan) = deployment.json(&["dlq", "replay", "--repo", "team/relay"]).await;
    assert_eq!(
        (exit, plan[0]["dry_run"].as_bool(), plan[0]["replayed"].as_u64()),
        (Exit::Success, Some(true), Some(1))
    );
    assert_eq!(plan[0]["id_conflicts"], 1);
    assert!(deployment.json(&["tail", "--topic", "packets"]).await.1.is_empty(), "a dry run writes nothing");

    let (exit, _) = deployment.run(&["dlq", "replay", "--repo", "team/relay", "--yes", "--rate", "1000"]).await;
    assert_eq!(exit, Exit::Success);
    let (_, replayed) = deployment.json(&["tail", "--topic", "packets", "--content"]).await;
    assert_eq!(replayed.len(), 1);
    let record = &replayed[0];
    assert_eq!((record["partition"].as_i64(), record["key"].as_str()), (Some(2), Some("team/relay")));
    assert_eq!(record["packet"]["packet_id"], hex::encode(&expired.packet_id));
    let names: Vec<_> = record["headers"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, [headers::PACKET_ID, headers::SCHEMA], "original headers, without dlq.*");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_refuses_what_it_cannot_place_and_insists_when_told() {
    let deployment = Deployment::new("replay").await;
    deployment.produce(&deployment.topics.dlq, 0, &packet("team/relay", "without dlq headers")).await;
    deployment.dead_letter(&packet("team/relay", "conflict"), "id_conflict", 1).await;

    let (exit, done) = deployment.json(&["dlq", "replay", "--yes"]).await;
    assert_eq!((exit, done[0]["without_origin"].as_u64()), (Exit::Partial, Some(1)));
    assert_eq!(done[0]["replayed"], 0);
    let (exit, done) = deployment.json(&["dlq", "replay", "--yes", "--reason", "id_conflict"]).await;
    assert_eq!((exit, done[0]["replayed"].as_u64()), (Exit::Success, Some(1)));
    assert_eq!(deployment.run(&["dlq", "replay", "--record", "2@5"]).await.0, Exit::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_the_distance_to_the_end() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    let deployment = Deployment::new("lag").await;
    for n in 0..5 {
        deployment.produce(&deployment.topics.packets, 0, &packet("team/relay", &n.to_string())).await;
    }
    let consumer: BaseConsumer = deployment.kafka().set("group.id", "lag-test").create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&deployment.topics.packets, 0, Offset::Offset(2)).unwrap();
    tokio::task::block_in_place(|| consumer.commit(&offsets, CommitMode::Sync)).unwrap();

    let (exit, rows) = deployment.json(&["groups", "lag", "--group", "lag-test"]).await;
    let rows = rows[0].as_array().unwrap().clone();
    assert_eq!((exit, rows.len()), (Exit::Success, 1), "{rows:?}");
    assert_eq!((rows[0]["current_offset"].as_i64(), rows[0]["lag"].as_i64()), (Some(2), Some(3)));

    let (_, rows) =
        deployment.json(&["groups", "lag", "--group", "lag-test", "--topic", &deployment.topics.packets]).await;
    assert_eq!(rows[0].as_array().unwrap().len(), 3, "a topic named shows every partition");
    assert_eq!(deployment.run(&["groups", "lag", "--group", "nobody"]).await.0, Exit::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_reads_what_is_stored() {
    let deployment = Deployment::new("get").await;
    let session = deployment.session().await;
    let insert = session.prepare(cql::insert(&deployment.keyspace)).await.unwrap();
    let mut ids = Vec::new();
    for (path, content) in [("src/a.rs", "fn a() {}"), ("../../etc/passwd", "hostile")] {
        let CodePacket { repo_id, content, mut metadata, packet_id, .. } = packet("team/relay", content);
        metadata.insert("path".to_owned(), path.to_owned());
        let day = scylla::value::CqlDate((1 << 31) + 20_484);
        let at = scylla::value::CqlTimestamp(1_769_817_600_000);
        let row = (repo_id, day, packet_id.to_vec(), content.to_vec(), metadata, at, at, "eu", 1_i64);
        session.execute_unpaged(&insert, row).await.unwrap();
        ids.push(hex::encode(&packet_id));
    }

    let (exit, rows) = deployment.json(&["get", "team/relay", "--day", "2026-01-31"]).await;
    assert_eq!((exit, rows.len()), (Exit::Success, 2));
    let row = rows.iter().find(|row| row["packet_id"] == ids[0].as_str()).unwrap();
    assert_eq!((row["content"].as_str(), row["region"].as_str()), (Some("fn a() {}"), Some("eu")));
    assert_eq!(row["created_at"], "2026-01-31T00:00:00.000Z");

    let one = ["get", "team/relay", "--day", "2026-01-31", "--packet-id", &ids[0]];
    assert_eq!(deployment.run(&one).await, (Exit::Success, "fn a() {}".to_owned()), "content alone, as it is");
    let (_, raw) = deployment.bytes(&[&one[..], &["--raw"]].concat()).await;
    assert_eq!(raw, gzip("fn a() {}"));

    let folder = tempfile::tempdir().unwrap();
    let out = ["get", "team/relay", "--day", "2026-01-31", "--out", folder.path().to_str().unwrap()];
    assert_eq!(deployment.run(&out).await.0, Exit::Success);
    assert_eq!(std::fs::read_to_string(folder.path().join("src/a.rs")).unwrap(), "fn a() {}");
    assert_eq!(std::fs::read_to_string(folder.path().join(&ids[1])).unwrap(), "hostile", "stays in the folder");

    assert_eq!(deployment.run(&["get", "team/relay", "--day", "2026-02-01"]).await.0, Exit::NotFound);
    assert_eq!(deployment.run(&["get", "team/relay", "--packet-id", &"00".repeat(16)]).await.0, Exit::NotFound);
}

/// Milliseconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Publishes a packet and stores it as the processor would, ingested at `ingested_at`.
async fn relay(deployment: &Deployment, packet: &CodePacket, ingested_at: i64) {
    deployment.produce(&deployment.topics.deduped, 1, packet).await;
    let session = deployment.session().await;
    let insert = session.prepare(cql::insert(&deployment.keyspace)).await.unwrap();
    let created_at = scylla::value::CqlTimestamp(ingested_at);
    let day = scylla::value::CqlDate((ingested_at.div_euclid(DAY_MS) + (1 << 31)) as u32);
    let CodePacket { repo_id, content, metadata, packet_id, .. } = packet.clone();
    let row = (repo_id, day, packet_id.to_vec(), content.to_vec(), metadata, created_at, created_at, "us-east", 1_i64);
    session.execute_unpaged(&insert, row).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_is_not_the_same_in_both_regions() {
    let (east, west) = (Deployment::new("east").await, Deployment::new("west").await);
    let (both, other, lost) = (packet("repo", "both"), packet("repo", "other"), packet("another", "lost"));
    let at = now();
    for region in [&east, &west] {
        relay(region, &both, at).await;
    }
    let regions = [("us-east", &east), ("eu-west", &west)].map(|(name, at)| at.as_region(name));
    let window = ["--since", "1h", "--until", "2126-01-01T00:00:00Z"];
    let verify = ["mirror", "verify", "--region", &regions[0], "--region", &regions[1]];
    let verify = [&verify[..], &window[..]].concat();
    let (exit, text) = east.run(&verify).await;
    assert_eq!(exit, Exit::Success, "{text}");
    assert!(text.contains("us-east: 1 published, 1 stored") && text.contains("0 differences"), "{text}");

    relay(&east, &other, at).await;
    relay(&west, &other, at + 1).await;
    relay(&east, &lost, at).await;
    let (exit, report) = east.json(&verify).await;
    assert_eq!(exit, Exit::Failure, "{report:?}");
    let said = |shown: &serde_json::Value| {
        let say = |found: &serde_json::Value| {
            let field = |name: &str| found[name].as_str().unwrap().to_owned();
            [field("region"), field("place"), field("what"), field("repo_id")].join(" ")
        };
        let mut said: Vec<_> = shown.as_array().unwrap().iter().map(say).collect();
        said.sort();
        said
    };
    assert_eq!(report[0]["differences"], 3);
    assert_eq!(
        said(&report[0]["shown"]),
        [
            "eu-west store missing another",
            "eu-west topic missing another",
            "us-east store created_at, ingested_at repo"
        ]
    );
    let (_, text) = east.run(&[&verify[..], &["-n", "1"]].concat()).await;
    assert!(text.contains("3 differences"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_what_it_needs() {
    let deployment = Deployment::new("needs").await;
    let one = deployment.as_region("us-east");
    for line in [
        &["mirror", "verify", "--region", "nowhere", "--region", &one][..],
        &["mirror", "verify", "--region", &one],
        &["mirror", "verify", "--region", &one, "--region", &one],
    ] {
        assert_eq!(deployment.run(line).await.0, Exit::Usage, "{line:?}");
    }
}
