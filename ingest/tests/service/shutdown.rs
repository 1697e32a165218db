//! Leaving under load, politely and not.

use std::collections::HashMap;
use std::error::Error as _;
use std::time::{Duration, Instant};

use coderelay_devstack::Stack;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchRequest, PublishResult};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{World, packets, places, reason, refusal, request};

/// What one client has seen by its end.
#[derive(Default)]
struct Seen {
    /// Where acknowledged packets are said to be.
    acknowledged: HashMap<(i32, i64), PacketId>,
    answers: HashMap<u64, usize>,
    end: Option<Status>,
}

impl Seen {
    fn take(&mut self, offset: u64, results: Vec<PublishResult>) {
        for result in results {
            *self.answers.entry(offset + result.seq).or_default() += 1;
            if let Some(Outcome::Committed(c)) = &result.outcome {
                let id = PacketId::from_slice(&result.packet_id).unwrap();
                self.acknowledged.insert((c.partition, c.offset), id);
            }
        }
    }
}

/// A client that publishes without pause until its stream ends.
async fn publish(world: &World, name: String) -> impl Future<Output = Seen> + use<> {
    let mut client = world.client().await;
    async move {
        let requests = tokio_stream::iter((0..).map(move |n| request(n * 50, packets(&format!("{name} {n}"), 50))));
        let mut responses = client.publish(requests).await.unwrap().into_inner();
        let mut seen = Seen::default();
        while let Some(response) = responses.next().await {
            match response {
                Ok(response) => seen.take(0, response.results),
                Err(status) => {
                    seen.end = Some(status);
                    break;
                }
            }
        }
        seen
    }
}

/// The same with one call after the other, until one fails.
async fn publish_batches(world: &World, name: String) -> impl Future<Output = Seen> + use<> {
    let mut client = world.client().await;
    async move {
        let mut seen = Seen::default();
        for n in 0.. {
            let batch = PublishBatchRequest { packets: packets(&format!("{name} {n}"), 50) };
            match client.publish_batch(batch).await {
                Ok(response) => seen.take(n * 50, response.into_inner().results),
                Err(status) => {
                    seen.end = Some(status);
                    break;
                }
            }
        }
        seen
    }
}

async fn load(world: &World) -> JoinSet<Seen> {
    let mut load = JoinSet::new();
    for n in 0..3 {
        load.spawn(publish(world, format!("stream {n}")).await);
        load.spawn(publish_batches(world, format!("batches {n}")).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_and_doubles_nothing() {
    let world = World::start().await;
    let load = load(&world).await;
    let started = Instant::now();
    let status = world.process.terminate().await.unwrap();
    assert!(status.success(), "{status}: {}", world.process.log_tail(20));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());

    let stored = places(&world.records().await);
    let (mut acknowledged, mut told) = (0, 0);
    for seen in load.join_all().await {
        assert!(seen.acknowledged.iter().all(|(place, id)| stored.get(place) == Some(id)));
        assert!(seen.answers.values().all(|answers| *answers == 1));
        acknowledged += seen.acknowledged.len();
        let end = seen.end.expect("what was cut short does not end well");
        // What tonic still held when the connection closed was never sent, and hyper calls it cancelled. A call that crossed the server's
        // GOAWAY was not taken either (RFC 9113, 6.8), and tonic calls it internal, as gRPC maps that error code.
        let unsent = end.code() == Code::Cancelled && end.source().is_some();
        let crossed = end.code() == Code::Internal && end.to_string().contains("GoAway(b\"\", NO_ERROR, Remote)");
        assert!(end.code() == Code::Unavailable || unsent || crossed, "{end:?}");
        if !end.details().is_empty() {
            assert_eq!(reason(&end.get_error_details()), "DRAINING", "{end}");
            assert!(end.get_error_details().retry_info().is_some());
            told += 1;
        }
    }
    assert!(told >= 3, "at least the streams are told why; a new call may find the port closed");
    assert!(acknowledged > 0);
    assert_eq!(acknowledged, stored.len(), "what was taken was answered");
    let ids: std::collections::HashSet<_> = stored.values().collect();
    assert_eq!(ids.len(), stored.len(), "nothing is stored twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_under_load_loses_nothing_that_was_acknowledged() {
    let world = World::start().await;
    let load = load(&world).await;
    world.process.kill().await.unwrap();
    let stored = places(&world.records().await);
    for seen in load.join_all().await {
        assert!(!seen.acknowledged.is_empty());
        assert!(seen.acknowledged.iter().all(|(place, id)| stored.get(place) == Some(id)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_it_leaves_within_its_grace_period_and_answers_before() {
    let stack = Stack::builder().start().await.unwrap();
    let world = World::on(&stack, &["lifecycle.grace=4s"]).await;
    stack.broker(0).pause().await.unwrap();
    let mut client = world.client().await;
    let waiting = tokio::spawn(async move {
        let requests = tokio_stream::iter([request(0, packets("stuck", 10))]).chain(tokio_stream::pending());
        let mut responses = client.publish(requests).await.unwrap().into_inner();
        (responses.next().await.unwrap().unwrap().results, responses.next().await.unwrap().unwrap_err())
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let status = world.process.terminate().await.unwrap();
    // A record is tried for 30 s.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(status.success(), "{status}: {}", world.process.log_tail(20));
    let (results, end) = waiting.await.unwrap();
    assert_eq!(results.len(), 10);
    for result in results {
        let (code, details) = refusal(&result);
        assert_eq!((code, reason(&details)), (Code::Unavailable, "DRAINING"));
        assert!(details.retry_info().is_some());
    }
    assert_eq!(end.code(), Code::Unavailable);
}
