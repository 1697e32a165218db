//! A region is killed under load and comes back: nothing acknowledged is lost, nothing is doubled, and both end with the same.

use std::time::Duration;

use coderelay_devstack::{Observer, Patience, Regions, Stack};
use relayctl::Exit;
use tempfile::TempDir;

use crate::region::Region;
use crate::{TURN, caught_up, equal, files, relayctl};

/// Sent to both regions.
const SHARED: usize = 300;
/// Sent while one region dies.
const UNDER_FIRE: usize = 5000;

#[tokio::test(flavor = "multi_thread")]
async fn a_region_dies_under_load_and_both_end_with_every_packet_once() {
    let _turn = TURN.lock().await;
    let regions = Regions::start(Stack::builder().cql(true)).await.unwrap();
    let observer = Observer::default();
    let looked_after = regions.mirror().supervise(Patience::default(), &observer);
    tokio::select! {
        end = looked_after => panic!("no longer looked after: {end:?}"),
        () = scenario(&regions) => {}
    }
}

async fn scenario(regions: &Regions) {
    let (east, west) = tokio::join!(Region::start(regions.us_east()), Region::start(regions.eu_west()));
    let (shared, under_fire) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    files(&shared, "shared", SHARED);
    files(&under_fire, "fire", UNDER_FIRE);

    let path = shared.path().to_str().unwrap();
    for region in [&east, &west] {
        let line = ["push", path, "--repo", "acme/shared", "--endpoint", &region.endpoint];
        assert_eq!(relayctl(&line).await.0, Exit::Success);
    }
    equal([&east, &west], SHARED).await;
    let addresses = [&east, &west].map(Region::address);
    let status = ["mirror", "status", "--region", &addresses[0], "--region", &addresses[1]];
    caught_up(&status).await;

    let before = east.taken();
    let endpoints = format!("{},{}", east.endpoint, west.endpoint);
    let path = under_fire.path().to_str().unwrap();
    let line = ["push", path, "--repo", "acme/fire", "--endpoint", &endpoints, "--patience", "60s"];
    let death = async {
        // More than a push has under way at once, so that some are acknowledged.
        while tokio::task::block_in_place(|| east.taken()) < before + 600 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        east.kill().await;
    };
    let ((exit, summary), ()) = tokio::join!(relayctl(&line), death);
    assert_eq!(exit, Exit::Success, "{summary:#}");
    let acknowledged = |endpoint: usize| summary["summary"]["endpoints"][endpoint]["committed"].as_u64().unwrap();
    assert!(acknowledged(0) > 0 && acknowledged(1) > 0, "both have taken some: {summary:#}");

    let (exit, directions) = relayctl(&status).await;
    assert_eq!(exit, Exit::Failure, "a region is away");
    assert!(
        directions[0]["tasks"]["MirrorSourceConnector-0"].is_string(),
        "the other tells how the mirror is: {directions:#}"
    );
    assert!(directions[0]["heartbeat_ms"].is_u64() && directions[0]["behind"].is_null(), "{directions:#}");
    for direction in directions.as_array().unwrap() {
        assert!(direction["trouble"].as_str().unwrap().starts_with("us-east: "), "{direction:#}");
    }

    east.restart().await;
    equal([&east, &west], SHARED + UNDER_FIRE).await;
    caught_up(&status).await;
}
