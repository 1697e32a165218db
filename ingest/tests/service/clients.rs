//! Clients that behave badly, slowly or not at all.

use std::collections::HashMap;
use std::time::Duration;

use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchRequest, PublishRequest, PublishResult};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, committed, connect, eventually, is_committed, packets, places, reason, request};

/// Requests that can be sent one by one.
fn outgoing() -> (mpsc::Sender<PublishRequest>, ReceiverStream<PublishRequest>) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, ReceiverStream::new(receiver))
}

/// Where the acknowledged packets are said to be.
fn acknowledged(results: &[PublishResult]) -> HashMap<(i32, i64), PacketId> {
    let place = |result: &PublishResult| match &result.outcome {
        Some(Outcome::Committed(c)) => {
            Some(((c.partition, c.offset), PacketId::from_slice(&result.packet_id).unwrap()))
        }
        _ => None,
    };
    results.iter().filter_map(place).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_sends_and_never_reads_is_held_by_flow_control() {
    let world = World::with(&["grpc.max_unanswered=4"]).await;
    let (sender, requests) = outgoing();
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    let mut sent = 0;
    let next = |n: u64| request(n * 500, packets(&format!("unread {n}"), 500));
    while timeout(Duration::from_secs(3), sender.send(next(sent))).await.is_ok() {
        sent += 1;
        assert!(sent < 500, "nothing holds the client");
    }
    world.idle().await;
    let stored = world.records().await.len() as u64;
    assert!(stored < sent * 500, "{stored} of {} packets were taken though nobody reads", sent * 500);

    assert!(world.peak_memory() < 128, "{} MiB", world.peak_memory());

    let neighbours = world.publish(packets("neighbour", 10)).await;
    assert!(neighbours.iter().all(is_committed));

    // Once it reads, everything is answered after all.
    drop(sender);
    let mut seqs = Vec::new();
    while let Some(response) = responses.next().await {
        seqs.extend(response.unwrap().results.iter().map(|result| result.seq));
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (0..sent * 500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_told_to_come_back_later() {
    let world = World::with(&["grpc.stream_idle_timeout=1s"]).await;
    let (sender, requests) = outgoing();
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    sender.send(request(0, packets("before", 1))).await.unwrap();
    committed(&responses.next().await.unwrap().unwrap().results[0]);
    let status = responses.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&status.get_error_details()), "STREAM_IDLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_loses_nothing_that_was_acknowledged() {
    let world = World::start().await;
    let (sender, requests) = outgoing();
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    tokio::spawn(async move {
        for n in 0_u64.. {
            if sender.send(request(n * 50, packets(&format!("cancel {n}"), 50))).await.is_err() {
                return;
            }
        }
    });
    let mut results = Vec::new();
    while results.len() < 2000 {
        results.extend(responses.next().await.unwrap().unwrap().results);
    }
    drop(responses);
    world.idle().await;

    let stored = places(&world.records().await);
    let acknowledged = acknowledged(&results);
    assert!(acknowledged.len() >= 2000);
    assert!(acknowledged.iter().all(|(place, id)| stored.get(place) == Some(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let world = World::start().await;
    let port = world.port;
    // A runtime of its own, so that its connection dies with it in the middle of a message.
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, requests) = outgoing();
            let channel = connect(port).await;
            let mut client = IngestClient::new(channel);
            let mut responses = client.publish(requests).await.unwrap().into_inner();
            sender.send(request(0, packets("vanish", 100))).await.unwrap();
            let results = responses.next().await.unwrap().unwrap().results;
            sender.send(request(100, packets("cut short", 5000))).await.unwrap();
            tokio::task::yield_now().await;
            results
        })
    });
    let results = client.join().unwrap();
    world.idle().await;
    let stored = places(&world.records().await);
    assert!(acknowledged(&results).iter().all(|(place, id)| stored.get(place) == Some(id)));
    committed(&world.publish(packets("after", 1)).await[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_are_asked_to_wait() {
    let world = World::with(&["grpc.max_streams=1"]).await;
    let (sender, requests) = outgoing();
    let mut open = world.client().await.publish(requests).await.unwrap().into_inner();
    let refused = world.client().await.publish(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());
    drop(sender);
    assert!(open.next().await.is_none());
    eventually("the place is free again", async || {
        world.client().await.publish(tokio_stream::iter([request(0, Vec::new())])).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_waits_for_a_place() {
    let world = World::with(&["grpc.max_connections=1"]).await;
    let mut first = world.client().await;
    committed(
        &first.publish_batch(PublishBatchRequest { packets: packets("first", 1) }).await.unwrap().get_ref().results[0],
    );
    let mut second = world.client().await;
    let mut waiting = tokio::spawn(async move {
        let batch = PublishBatchRequest { packets: packets("second", 1) };
        second.publish_batch(batch).await.unwrap().into_inner().results
    });
    assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
    drop(first);
    committed(&waiting.await.unwrap()[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_pings_may_be_idle() {
    let world = World::with(&["grpc.keepalive_interval=1s", "grpc.keepalive_timeout=3s"]).await;
    let (sender, requests) = outgoing();
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    for n in 0..2 {
        sender.send(request(n, packets(&format!("idle {n}"), 1))).await.unwrap();
        committed(&responses.next().await.unwrap().unwrap().results[0]);
        // Longer than an interval, a timeout and a second.
        let ended = timeout(Duration::from_secs(6), responses.next()).await;
        assert!(ended.is_err(), "the stream has ended: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_at_its_connections_age() {
    let world = World::with(&["grpc.max_connection_age=1s"]).await;
    let (sender, requests) = outgoing();
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    sender.send(request(0, packets("before", 1))).await.unwrap();
    committed(&responses.next().await.unwrap().unwrap().results[0]);
    let status = responses.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status.get_error_details()), "CONNECTION_AGE");
    assert!(status.get_error_details().retry_info().is_some());
}
