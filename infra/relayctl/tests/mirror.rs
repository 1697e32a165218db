//! Two regions compared, each a deployment on the shared stack.

mod support;

use std::time::SystemTime;

use coderelay_schemas::cql;
use coderelay_schemas::pb::CodePacket;
use relayctl::Exit;
use scylla::value::{CqlDate, CqlTimestamp};
use support::{Deployment, packet};

const DAY_MS: i64 = 86_400_000;

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Publishes a packet and stores it as the processor would, ingested at `ingested_at`.
async fn relay(deployment: &Deployment, packet: &CodePacket, ingested_at: i64) {
    deployment.produce(&deployment.topics.deduped, 1, packet).await;
    let session = deployment.session().await;
    let insert = session.prepare(cql::insert(&deployment.keyspace)).await.unwrap();
    let (created_at, day) = (CqlTimestamp(ingested_at), CqlDate((ingested_at.div_euclid(DAY_MS) + (1 << 31)) as u32));
    let CodePacket { repo_id, content, metadata, packet_id, .. } = packet.clone();
    let ingested = CqlTimestamp(ingested_at);
    let row = (repo_id, day, packet_id.to_vec(), content.to_vec(), metadata, created_at, ingested, "us-east", 1_i64);
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
