//! A region loses its disks and is made again from the other: what had been mirrored and what came afterwards is in both, once; what had
//! been acknowledged and not mirrored is counted and named.

use std::path::Path;
use std::time::Duration;

use coderelay_devstack::{Observer, Patience, Regions, Stack};
use coderelay_schemas::cql::KEYSPACE;
use coderelay_schemas::topics::{PACKETS, PARTITIONS, TopicNames};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use relayctl::Exit;
use serde_json::Value;
use tempfile::TempDir;

use crate::region::Region;
use crate::{TURN, caught_up, equal, files, receipts, relayctl};

/// What `MirrorMaker` may take to leave.
const GRACE: Duration = Duration::from_secs(20);
/// Sent to both regions, to one of them, and to one while the mirror stands.
const SHARED: usize = 100;
const OWN: usize = 400;
const NOT_MIRRORED: usize = 25;

/// Pushes so many files, the same to each of these regions, and writes down what was acknowledged.
async fn push(regions: &[&Region<'_>], name: &str, count: usize, receipts_to: &Path) {
    let folder = TempDir::new().unwrap();
    files(&folder, name, count);
    for region in regions {
        let path = folder.path().to_str().unwrap();
        let line = ["push", path, "--repo", &format!("acme/{name}"), "--endpoint", &region.endpoint];
        assert_eq!(receipts(&line, receipts_to).await, Exit::Success);
    }
}

fn records(config: &ClientConfig, topic: &str) -> i64 {
    let consumer: BaseConsumer = config.create().unwrap();
    let length = |partition| {
        let (low, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap();
        end - low
    };
    (0..PARTITIONS).map(length).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_without_its_disks_is_rebuilt_and_both_hold_everything_that_was_mirrored_once() {
    let _turn = TURN.lock().await;
    let regions = Regions::start(Stack::builder().cql(true)).await.unwrap();
    let (east, west) = tokio::join!(Region::start(regions.us_east()), Region::start(regions.eu_west()));
    let addresses = [&east, &west].map(Region::address);
    let status = ["mirror", "status", "--region", &addresses[0], "--region", &addresses[1]];
    let folder = TempDir::new().unwrap();
    let (told, lost) = (folder.path().join("told"), folder.path().join("lost"));

    push(&[&east, &west], "shared", SHARED, &told).await;
    push(&[&east], "east", OWN, &told).await;
    push(&[&west], "west", OWN, &told).await;
    equal([&east, &west], SHARED + 2 * OWN).await;
    caught_up(&status).await;

    // Acknowledged by us-east, and not in eu-west when it dies.
    regions.mirror().process().stop(GRACE).await.unwrap();
    push(&[&east], "lost", NOT_MIRRORED, &lost).await;
    east.kill().await;
    std::fs::remove_dir_all(east.stack.dir()).unwrap();
    push(&[&west], "meanwhile", OWN, &told).await;

    east.stack.restart_empty(&Observer::default()).await.unwrap();
    east.stack.create_topics(&TopicNames::default(), PARTITIONS).await.unwrap();
    east.stack.create_keyspace(KEYSPACE).await.unwrap();
    let (exit, report) = relayctl(&["mirror", "restore", "--from", &addresses[1], "--to", &addresses[0]]).await;
    assert_eq!((exit, &report["records"]), (Exit::Success, &Value::from(SHARED + OWN)), "{report:#}");

    for service in [&east.ingest, &east.processor, regions.mirror().process()] {
        service.start().unwrap();
    }
    east.ingest.ready().await.unwrap();
    east.processor.ready().await.unwrap();
    push(&[&east], "after", OWN, &told).await;
    let observer = Observer::default();
    let everything = SHARED + 4 * OWN;
    tokio::select! {
        end = regions.mirror().supervise(Patience::default(), &observer) => panic!("no longer looked after: {end:?}"),
        () = async { equal([&east, &west], everything).await; caught_up(&status).await } => {}
    }
    // Not a record of those that were given back went to eu-west again: nobody there would remember it as a duplicate after an hour.
    let mirrored = records(&west.stack.kafka_client(), &format!("us-east.{PACKETS}"));
    assert_eq!(mirrored, i64::try_from(SHARED + 2 * OWN).unwrap());

    let verify = ["mirror", "verify", "--region", &addresses[0], "--region", &addresses[1], "--until", "2126-01-01"];
    let (told, lost) = (told.to_str().unwrap(), lost.to_str().unwrap());
    let (exit, report) = relayctl(&[&verify[..], &["--receipts", told]].concat()).await;
    assert_eq!((exit, &report["acknowledged"]), (Exit::Success, &Value::from(everything)), "{report:#}");
    let (exit, report) = relayctl(&[&verify[..], &["--receipts", told, "--receipts", lost]].concat()).await;
    assert_eq!(exit, Exit::Failure, "{report:#}");
    assert_eq!((&report["lost"], &report["differences"]), (&Value::from(NOT_MIRRORED), &Value::from(NOT_MIRRORED)));
    assert_eq!(report["shown"][0]["repo_id"], "acme/lost", "{report:#}");
}
