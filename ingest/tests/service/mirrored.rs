//! `x-ack: mirrored`: acknowledged is what the other region has too, and nothing else.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use coderelay_devstack::{REGIONS, Regions, Stack};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::partition::partition_for;
use coderelay_schemas::pb::PublishResult;
use coderelay_schemas::topics::{PACKETS, PARTITIONS, TopicNames};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{
    World, committed, eventually, headers, is_committed, kafka, packet, packets, reason, records, refusal, request,
    with_ack,
};

/// A setting that names another region where nobody is.
const NOBODY: &str = "mirror.kafka.bootstrap_servers=127.0.0.1:1";

/// Two regions for all tests that need them, one at a time: they stop the mirror.
pub(crate) async fn regions() -> (&'static Regions, MutexGuard<'static, ()>) {
    static REGIONS: OnceCell<Regions> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (REGIONS.get_or_init(async || Regions::start(Stack::builder()).await.unwrap()).await, turn)
}

/// `ingest` in us-east, which eu-west confirms packets to.
pub(crate) async fn in_us_east(regions: &Regions, settings: &[&str]) -> World {
    let other = format!("mirror.kafka.bootstrap_servers={}", regions.eu_west().bootstrap_servers());
    let settings = [&["region=us-east", &other], settings].concat();
    let world = World::launch(regions.us_east(), &TopicNames::default(), &settings);
    eventually("ingest is ready", async || world.ready().await == 200).await;
    world
}

/// The ids of everything that has arrived in eu-west by now.
pub(crate) async fn arrived(regions: &Regions) -> HashSet<String> {
    let topic = format!("{}.{PACKETS}", REGIONS[0]);
    let records = records(&regions.eu_west().bootstrap_servers(), &topic).await;
    records.iter().map(|record| headers(record)["packet-id"].clone()).collect()
}

pub(crate) fn id(result: &PublishResult) -> String {
    PacketId::from_slice(&result.packet_id).unwrap().to_string()
}

fn assert_unconfirmed(results: &[PublishResult]) {
    for result in results {
        let (code, details) = refusal(result);
        assert_eq!((code, reason(&details)), (Code::Unavailable, "MIRROR_UNCONFIRMED"));
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_packet_is_in_the_other_region() {
    let (regions, _turn) = regions().await;
    let world = in_us_east(regions, &[]).await;
    let requests = tokio_stream::iter((0..50).map(|n| request(n * 20, packets(&format!("mirrored {n}"), 20))));
    let mut responses = world.client().await.publish(with_ack("mirrored", requests)).await.unwrap().into_inner();
    let mut acknowledged = HashSet::new();
    while let Some(response) = responses.next().await {
        for result in response.unwrap().results {
            committed(&result);
            acknowledged.insert(id(&result));
        }
    }
    let batch = world.publish_ack("mirrored", packets("batch", 20)).await.unwrap();
    acknowledged.extend(batch.iter().filter(|result| is_committed(result)).map(id));
    // What arrives from now on is too late.
    regions.mirror().process().pause().await.unwrap();
    let arrived = arrived(regions).await;
    regions.mirror().process().resume().await.unwrap();
    assert_eq!(acknowledged.len(), 1020);
    assert!(acknowledged.is_subset(&arrived), "{} are missing", acknowledged.difference(&arrived).count());
    assert!(world.metric("coderelay_ingest_mirror_packets_total{outcome=\"confirmed\"}").await >= 1020.0);
    assert!(world.metric("coderelay_ingest_mirror_wait_seconds_count").await >= 1020.0);
    assert!((world.metric("coderelay_ingest_mirror_up").await - 1.0).abs() < f64::EPSILON);
    world.idle().await;
    assert!(world.checks().await.contains("[+]mirror ok"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_mirror_hangs_packets_are_unconfirmed_and_local_ones_acknowledged_and_a_retry_succeeds() {
    let (regions, _turn) = regions().await;
    let world = in_us_east(regions, &["mirror.max_wait=1s"]).await;
    assert!(world.publish_ack("mirrored", packets("before", 5)).await.unwrap().iter().all(is_committed));

    regions.mirror().process().pause().await.unwrap();
    let started = Instant::now();
    let (mirrored, local) =
        tokio::join!(world.publish_ack("mirrored", packets("hanging", 50)), world.publish(packets("local", 50)));
    let took = started.elapsed();
    assert_unconfirmed(&mirrored.unwrap());
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    assert!(local.iter().all(is_committed));
    assert_eq!(world.ready().await, 200);
    assert!(world.metric("coderelay_ingest_mirror_packets_total{outcome=\"unconfirmed\"}").await >= 50.0);
    world.idle().await;
    let missing = arrived(regions).await;
    assert!(local.iter().all(|result| !missing.contains(&id(result))), "nothing is mirrored meanwhile");

    regions.mirror().process().resume().await.unwrap();
    let mut again = Vec::new();
    eventually("a retry is acknowledged", async || {
        again = world.publish_ack("mirrored", packets("hanging", 50)).await.unwrap();
        again.iter().all(is_committed)
    })
    .await;
    let arrived = arrived(regions).await;
    assert!(again.iter().all(|result| arrived.contains(&id(result))));
}

/// As the old topic's offset would be heard after this region's topic was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_does_not_exist_here_confirms_nothing() {
    let (regions, _turn) = regions().await;
    let world = in_us_east(regions, &["mirror.max_wait=3s"]).await;
    let repo = "acme/anew";
    let partition = partition_for(repo.as_bytes(), PARTITIONS);
    let mirrored = async |text: &str| world.publish_ack("mirrored", vec![packet(repo, text)]).await.unwrap();
    let offset = committed(&mirrored("first").await[0]).offset;
    let offsets: FutureProducer = regions.eu_west().kafka_client().create().unwrap();
    let say = async |offset: i64| {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let key =
            format!(r#"["MirrorSourceConnector",{{"cluster":"us-east","partition":{partition},"topic":"{PACKETS}"}}]"#);
        let value = format!(r#"{{"offset":{offset}}}"#);
        let record = FutureRecord::to("mm2-offsets.us-east.internal").key(&key).payload(&value);
        offsets.send(record, Duration::from_secs(10)).await.unwrap();
    };

    regions.mirror().process().pause().await.unwrap();
    let (unconfirmed, ()) = tokio::join!(mirrored("second"), say(1_000_000));
    assert_unconfirmed(&unconfirmed);
    // The same with the true offset, which shows that such a record is read at all.
    let (confirmed, ()) = tokio::join!(mirrored("third"), say(offset + 2));
    assert_eq!(committed(&confirmed[0]).offset, offset + 2);
    regions.mirror().process().resume().await.unwrap();
    eventually("the mirror's own offset is the last again", async || is_committed(&mirrored("fourth").await[0])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_other_region_it_is_ready_and_says_so_and_its_default_can_be_overruled() {
    let world = World::with(&[NOBODY, "mirror.max_wait=1s", "ack.default=mirrored"]).await;
    let checks = world.checks().await;
    assert!(
        checks.contains("[!]mirror failed: the other region does not answer") && checks.ends_with("ready\n"),
        "{checks}"
    );
    let (default, local) =
        tokio::join!(world.publish(packets("default", 5)), world.publish_ack("local", packets("local", 5)));
    assert_unconfirmed(&default);
    assert!(local.unwrap().iter().all(is_committed));
    assert!(world.metric("coderelay_ingest_mirror_up").await < 1.0);
    assert_eq!(world.records().await.len(), 10, "unconfirmed is durable here all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_wait_leave_room_for_those_that_need_not() {
    let world = World::with(&[NOBODY, "mirror.max_wait=5s", "admission.packets=200"]).await;
    // Fifty more than may wait, which nobody knows when they are admitted.
    let first = world.publish_ack("mirrored", packets("first", 150));
    let others = async {
        eventually("all wait", async || world.metric("coderelay_ingest_mirror_waiting").await >= 100.0).await;
        let refused = world.publish_ack("mirrored", packets("second", 1)).await.unwrap();
        let (code, details) = refusal(&refused[0]);
        assert_eq!((code, reason(&details)), (Code::ResourceExhausted, "MIRROR_BEHIND"));
        assert!(details.retry_info().is_some());
        assert!(world.publish(packets("local", 100)).await.iter().all(is_committed));
    };
    let (first, ()) = tokio::join!(first, others);
    assert_unconfirmed(&first.unwrap());
    world.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_within_its_grace_period_and_answers_what_waits() {
    let world = World::with(&[NOBODY, "mirror.max_wait=60s", "lifecycle.grace=4s"]).await;
    let waiting = world.publish_ack("mirrored", packets("waiting", 10));
    let leaving = async {
        eventually("all wait", async || world.metric("coderelay_ingest_mirror_waiting").await >= 10.0).await;
        let started = Instant::now();
        let status = world.process.terminate().await.unwrap();
        assert!(status.success() && started.elapsed() < Duration::from_secs(30), "{status}, {:?}", started.elapsed());
    };
    let (results, ()) = tokio::join!(waiting, leaving);
    assert_unconfirmed(&results.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_acknowledgement_or_cannot_be_had_is_refused_for_the_whole_call() {
    let world = World::on(kafka().await, &[]).await;
    for (ack, code, expected) in [
        ("both", Code::InvalidArgument, "ACK_UNKNOWN"),
        ("mirrored", Code::FailedPrecondition, "MIRROR_NOT_CONFIGURED"),
    ] {
        let batch = world.publish_ack(ack, packets("refused", 1)).await.unwrap_err();
        let stream = with_ack(ack, tokio_stream::iter([request(0, packets("refused", 1))]));
        let stream = world.client().await.publish(stream).await.unwrap_err();
        for status in [batch, stream] {
            let details = status.get_error_details();
            assert_eq!((status.code(), reason(&details)), (code, expected));
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, "x-ack");
            assert!(details.retry_info().is_none());
        }
    }
    assert!(world.publish_ack("local", packets("taken", 1)).await.unwrap().iter().all(is_committed));
    assert_eq!(world.records().await.len(), 1);
}

/// What the README says of the two acknowledgements: `cargo test -p ingest --test service -- --ignored --nocapture measured`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measured_at_a_thousand_a_second() {
    let (regions, _turn) = regions().await;
    let world = in_us_east(regions, &[]).await;
    for ack in ["local", "mirrored", "local", "mirrored"] {
        let started = tokio::time::Instant::now();
        let due = move |n: u64| started + Duration::from_millis(n);
        let requests = (0..15_000).map(move |n| (n, request(n, packets(&format!("{ack} {started:?} {n}"), 1))));
        let requests = tokio_stream::iter(requests).then(move |(n, request)| async move {
            tokio::time::sleep_until(due(n)).await;
            request
        });
        let mut responses = world.client().await.publish(with_ack(ack, requests)).await.unwrap().into_inner();
        let mut took = Vec::new();
        while let Some(response) = responses.next().await {
            for result in response.unwrap().results.iter().filter(|result| is_committed(result)) {
                // What the first seconds take says how it begins.
                if result.seq >= 5_000 {
                    took.push(due(result.seq).elapsed());
                }
            }
        }
        took.sort_unstable();
        let at = |share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("{ack}: {} acknowledged, p50 {:.1} ms, p99 {:.1} ms", took.len(), at(0.5), at(0.99));
    }
}
