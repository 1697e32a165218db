//! A region is lost under load: what it acknowledged as mirrored is in the other, and what it acknowledged alone need not be.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use crate::mirrored::{arrived, id, in_us_east, regions};
use crate::world::{World, eventually, is_committed, packets, request, with_ack};

/// So many acknowledgements have come when the region is lost.
const UNDER_WAY: usize = 2_000;

/// Publishes without pause until the stream breaks, and says which packets were acknowledged; `count` goes up with each.
async fn publish(
    world: &World,
    ack: &'static str,
    name: String,
    count: Arc<AtomicUsize>,
) -> impl Future<Output = HashSet<String>> + use<> {
    let mut client = world.client().await;
    async move {
        let requests = tokio_stream::iter((0..).map(move |n| request(n * 50, packets(&format!("{name} {n}"), 50))));
        let mut responses = client.publish(with_ack(ack, requests)).await.unwrap().into_inner();
        let mut acknowledged = HashSet::new();
        while let Some(Ok(response)) = responses.next().await {
            acknowledged.extend(response.results.iter().filter(|result| is_committed(result)).map(id));
            count.fetch_add(response.results.iter().filter(|result| is_committed(result)).count(), Ordering::Relaxed);
        }
        acknowledged
    }
}

/// Three such clients, well under way.
async fn load(world: &World, ack: &'static str, name: &str) -> JoinSet<HashSet<String>> {
    let (mut load, count) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for n in 0..3 {
        load.spawn(publish(world, ack, format!("{name} {n}"), Arc::clone(&count)).await);
    }
    eventually("acknowledgements come", async || count.load(Ordering::Relaxed) >= UNDER_WAY).await;
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_lost_under_load_loses_nothing_that_was_acknowledged_as_mirrored() {
    let (regions, _turn) = regions().await;
    for round in 0..3 {
        let world = in_us_east(regions, &[]).await;
        let load = load(&world, "mirrored", &format!("round {round}")).await;
        // No longer than the killed broker: nothing may arrive that it has sent out already.
        let (broker, ingest, mirror) =
            tokio::join!(regions.us_east().kill(), world.process.kill(), regions.mirror().process().kill());
        broker.unwrap();
        ingest.unwrap();
        mirror.unwrap();
        let acknowledged: HashSet<String> = load.join_all().await.into_iter().flatten().collect();
        let arrived = arrived(regions).await;
        let lost = acknowledged.difference(&arrived).count();
        println!("round {round}: {} acknowledged as mirrored, {lost} lost", acknowledged.len());
        assert!(acknowledged.len() >= UNDER_WAY);
        assert_eq!(lost, 0);
        regions.us_east().restart().await.unwrap();
        regions.mirror().process().start().unwrap();
        regions.mirror().process().ready().await.unwrap();
    }
}

/// The control: the same loss, with the mirror behind, does lose what only this region had acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_lost_under_load_loses_what_it_acknowledged_alone() {
    let (regions, _turn) = regions().await;
    let world = in_us_east(regions, &[]).await;
    regions.mirror().process().pause().await.unwrap();
    let load = load(&world, "local", "alone").await;
    let (broker, ingest) = tokio::join!(regions.us_east().kill(), world.process.kill());
    broker.unwrap();
    ingest.unwrap();
    let acknowledged: HashSet<String> = load.join_all().await.into_iter().flatten().collect();
    let arrived = arrived(regions).await;
    let lost = acknowledged.difference(&arrived).count();
    assert!(lost > 100, "of {} acknowledged {lost} were lost", acknowledged.len());
    regions.us_east().restart().await.unwrap();
    regions.mirror().process().resume().await.unwrap();
    regions.mirror().process().ready().await.unwrap();
}
