//! Clients that attack with HTTP/2 itself: each costs little memory, and no neighbour waits for long.

use std::future::Future;
use std::time::{Duration, Instant};

use coderelay_schemas::pb::PublishBatchRequest;
use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::http2::{
    CANCEL, CONTINUATION, Connection, DATA, END_HEADERS, ENHANCE_YOUR_CALM, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, call, call_headers, frame, header, stream, unary,
};
use crate::world::{World, eventually, is_committed, packets};

/// What `ingest` may grow by under any attack, in MiB.
const GROWTH: u64 = 64;

const WINDOW: u32 = 65_535;

/// Publishes like any other client until all is committed, retrying what it is told to retry. How long its batches took: the median and
/// the longest, for whoever reads it; how busy the machine is decides too much for a bound.
async fn neighbour(world: &World, name: &str) -> [Duration; 2] {
    let mut client = world.client().await;
    let mut took = Vec::new();
    for n in 0..20 {
        let sent = Instant::now();
        let mut left = packets(&format!("{name} {n}"), 50);
        eventually("the neighbour's packets are committed", async || {
            let batch = PublishBatchRequest { packets: left.clone() };
            match client.publish_batch(batch).await {
                Ok(response) => {
                    let mut results = response.into_inner().results.into_iter();
                    left.retain(|_| !is_committed(&results.next().unwrap()));
                }
                Err(status) => {
                    assert!(matches!(status.code(), Code::ResourceExhausted | Code::Unavailable), "{status}");
                }
            }
            left.is_empty()
        })
        .await;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    [took[took.len() / 2], took[took.len() - 1]]
}

/// Attacks, with a neighbour at work before, during and after it, and while what the attacker holds is still held.
async fn withstands<Held>(world: &World, attack: impl Future<Output = Held>) {
    let undisturbed = neighbour(world, "before").await;
    let before = world.memory();
    let (held, during) = tokio::join!(attack, neighbour(world, "during"));
    let holding = neighbour(world, "while it is held").await;
    println!(
        "a neighbour's batches, median and longest: {undisturbed:?} before, {during:?} during, {holding:?} while it is held"
    );
    let (peak, after) = (world.peak_memory(), world.memory());
    println!("resident: {before} MiB before, {peak} at most, {after} after");
    assert!(peak - before < GROWTH, "grew from {before} to {peak} MiB");
    drop(held);
    neighbour(world, "after").await;
    assert!(world.process.is_running());
}

async fn open(world: &World) -> Connection {
    Connection::open(world.port, WINDOW).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_end_the_connection() {
    // CVE-2023-44487
    let world = World::start().await;
    let cancelled = |id| [call(id, "Publish"), frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes())].concat();
    let calls = |n: u32| (n * 100..n * 100 + 100).flat_map(|n| cancelled(stream(n))).collect();
    withstands(&world, async {
        for _ in 0..5 {
            assert_eq!(open(&world).await.flood(500, calls).await, Some(ENHANCE_YOUR_CALM));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_that_the_client_provokes_end_the_connection() {
    // CVE-2025-8671: a window that overflows is a mistake for which the server has to reset the stream.
    let world = World::start().await;
    let calls = |n: u32| {
        let id = stream(n);
        [call(id, "Publish"), frame(WINDOW_UPDATE, 0, id, &0x7fff_ffff_u32.to_be_bytes())].concat()
    };
    withstands(&world, async {
        assert_eq!(open(&world).await.flood(50_000, calls).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused() {
    let world = World::start().await;
    withstands(&world, async {
        let mut held = Vec::new();
        for _ in 0..5 {
            let mut connection = open(&world).await;
            let calls: Vec<u8> = (0..100).flat_map(|n| call(stream(n), "Publish")).collect();
            connection.send(&calls).await.unwrap();
            held.push(connection);
        }
        eventually("the streams are open", async || open_streams(&world).await > 499.5).await;
        for connection in held {
            let more = |n| call(stream(100 + n), "Publish");
            assert_eq!(connection.flood(10_000, more).await, Some(ENHANCE_YOUR_CALM));
        }
        assert!(open_streams(&world).await < 500.5);
    })
    .await;
}

async fn open_streams(world: &World) -> f64 {
    world.metric("coderelay_ingest_open_streams").await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_never_read_are_bounded_and_make_way_for_others() {
    // CVE-2019-9517: two bytes of an empty packet are refused with hundreds.
    let world = World::with(&["admission.packets=10000"]).await;
    let empty_packets = [0x0a, 0].repeat(5_000);
    withstands(&world, async {
        let attackers = (0..4).map(|_| async {
            let mut connection = Connection::open(world.port, 1).await.unwrap();
            for n in 0..50 {
                if connection.send(&unary(stream(n), "PublishBatch", &empty_packets)).await.is_err() {
                    break;
                }
            }
            connection
        });
        join_all(attackers).await
    })
    .await;
    eventually("all places are free again", async || world.metric("coderelay_ingest_unread_results").await == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_its_socket_unread_is_closed() {
    // CVE-2019-9512 and CVE-2019-9515: each ping and each SETTINGS has to be answered.
    let world = World::with(&["grpc.keepalive_interval=1s", "grpc.keepalive_timeout=1s"]).await;
    let floods = [
        frame(PING, 0, 0, b"pingping").repeat(1_000),
        frame(SETTINGS, 0, 0, &[]).repeat(1_000),
        frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0]).repeat(1_000),
    ];
    withstands(&world, async {
        join_all(floods.iter().map(|frames| async { open(&world).await.flood_unread(frames).await })).await;
    })
    .await;
    eventually("their places are free", async || world.metric("coderelay_ingest_open_connections").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_settings_that_are_read_cost_no_memory() {
    let world = World::start().await;
    let floods = [frame(PING, 0, 0, b"pingping").repeat(100), frame(SETTINGS, 0, 0, &[]).repeat(100)];
    withstands(&world, async {
        join_all(floods.iter().map(|frames| async { open(&world).await.flood(1_000, |_| frames.clone()).await })).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_headers_end_the_call_or_the_connection() {
    let world = World::start().await;
    let large = [call_headers("Publish"), header("x-large", &"x".repeat(1 << 20), false)].concat();
    let one_large_header = move |n: u32| {
        let (first, rest) = large.split_at(16_384);
        let mut frames = frame(HEADERS, 0, stream(n), first);
        frames.extend(rest.chunks(16_384).flat_map(|part| frame(CONTINUATION, 0, stream(n), part)));
        [frames, frame(CONTINUATION, END_HEADERS, stream(n), &[])].concat()
    };
    // CVE-2016-6581: an entry of the table, and then a byte for each time it is meant.
    let entry = header("x-bomb", &"x".repeat(3_900), true);
    let bomb = [call_headers("Publish"), entry, vec![0xbe; 12_000]].concat();
    let bombs = move |n: u32| frame(HEADERS, END_HEADERS, stream(n), &bomb);
    withstands(&world, async {
        open(&world).await.flood(100, one_large_header).await.expect("the connection is ended");
        open(&world).await.flood(100, bombs).await.expect("the connection is ended");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_never_end_end_the_connection() {
    // CVE-2024-27316
    let world = World::start().await;
    for fragment in [&[][..], &header("x-small", "x", false)] {
        let endless = |n: u32| match n {
            0 => frame(HEADERS, 0, 1, &call_headers("Publish")),
            _ => frame(CONTINUATION, 0, 1, fragment),
        };
        withstands(&world, async {
            assert_eq!(open(&world).await.flood(100_000, endless).await, Some(ENHANCE_YOUR_CALM));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_begin_give_their_places_back() {
    let world = World::with(&["grpc.max_connections=8", "grpc.handshake_timeout=1s"]).await;
    let port = world.port;
    withstands(&world, async {
        let attackers = (0..24).map(|n| async move {
            let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            match n % 3 {
                0 => {}
                1 => tcp.write_all(&PREFACE[..10]).await.unwrap(),
                _ => {
                    for byte in &PREFACE[..20] {
                        if tcp.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            tcp
        });
        join_all(attackers).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_hold_nobody_up() {
    let world = World::start().await;
    withstands(&world, async {
        let mut held = Vec::new();
        for _ in 0..10 {
            let mut connection = open(&world).await;
            let calls: Vec<u8> =
                (0..100).flat_map(|n| call(stream(n), ["Publish", "PublishBatch"][n as usize % 2])).collect();
            connection.send(&calls).await.unwrap();
            held.push(connection);
        }
        held
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_announced_and_not_sent_hold_nobody_up() {
    // Each reserves a quarter of the budget with its first five bytes.
    let world = World::start().await;
    let announced = |n| [call(stream(n), "Publish"), frame(DATA, 0, stream(n), &[0, 0x01, 0, 0, 0])].concat();
    withstands(&world, async {
        let mut connection = open(&world).await;
        for n in 0..20 {
            connection.send(&announced(n)).await.unwrap();
        }
        connection
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_health_are_short() {
    let world = World::start().await;
    let check = HealthCheckRequest { service: "x".repeat(10_000) };
    let refused = HealthClient::new(world.channel().await).check(check).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
}
