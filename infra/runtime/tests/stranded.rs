//! What becomes of librdkafka's clients when the only broker leaves itself out of its metadata for a moment, as one does that is fenced.
//! Should this fail with a newer librdkafka, `Statistics::is_stranded` and whoever asks it may go.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coderelay_runtime::kafka::Context;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

/// The key of a metadata request, which in version 0 needs no negotiation before.
const METADATA: i16 = 3;
/// So many that reading the response takes longer than closing a connection: that is when librdkafka calls its return to the bootstrap
/// servers off.
const TOPICS: i32 = 5_000;

/// A broker that tells nothing but its metadata, and leaves itself out while it is `fenced`.
struct Broker {
    port: u16,
    fenced: Arc<AtomicBool>,
}

impl Broker {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = Self { port: listener.local_addr().unwrap().port(), fenced: Arc::default() };
        let (port, fenced) = (broker.port, Arc::clone(&broker.fenced));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let fenced = Arc::clone(&fenced);
                thread::spawn(move || serve(connection.unwrap(), port, &fenced));
            }
        });
        broker
    }
}

/// Answers until the client goes.
fn serve(mut connection: TcpStream, port: u16, fenced: &AtomicBool) {
    let mut size = [0; 4];
    while connection.read_exact(&mut size).is_ok() {
        let mut request = vec![0; u32::from_be_bytes(size) as usize];
        connection.read_exact(&mut request).unwrap();
        // Its key, version and correlation id; the rest does not matter.
        if request[..2] != METADATA.to_be_bytes() {
            continue;
        }
        let response = [&request[4..8], &metadata(port, fenced.load(Ordering::Relaxed))].concat();
        let size = (response.len() as i32).to_be_bytes();
        if connection.write_all(&[&size, &*response].concat()).is_err() {
            return;
        }
    }
}

/// A metadata response of version 0: brokers, and topics with their partitions.
fn metadata(port: u16, fenced: bool) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat();
    if !fenced {
        let broker = [&1_i32.to_be_bytes(), &*string("127.0.0.1"), &i32::from(port).to_be_bytes()].concat();
        return [&1_i32.to_be_bytes(), &*broker, &0_i32.to_be_bytes()].concat();
    }
    let no_error = 0_i16.to_be_bytes();
    // One partition, its number, no leader, no replicas, none in sync.
    let partition = [1_i32, 0, -1, 0, 0].map(i32::to_be_bytes);
    let (count, rest) = (partition[0], partition[1..].concat());
    let topic = |number| [&no_error, &*string(&format!("topic-{number:0200}")), &count, &no_error, &rest].concat();
    let topics: Vec<u8> = (0..TOPICS).flat_map(topic).collect();
    [&0_i32.to_be_bytes(), &TOPICS.to_be_bytes(), &*topics].concat()
}

/// A client that was connected when the broker left itself out for a moment.
fn client_of(broker: &Broker) -> BaseConsumer<Context> {
    let client: BaseConsumer<Context> = ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{}", broker.port))
        .set("api.version.request", "false")
        .set("broker.version.fallback", "0.9.0")
        .set("statistics.interval.ms", "500")
        .create_with_context(Context::new("stranded"))
        .unwrap();
    let ask = || client.fetch_metadata(None, Duration::from_secs(10));
    assert_eq!(ask().unwrap().brokers().len(), 1);
    assert_eq!(ask().unwrap().brokers().len(), 1, "as one that it has learned of");
    broker.fenced.store(true, Ordering::Relaxed);
    let _ = ask();
    broker.fenced.store(false, Ordering::Relaxed);
    client
}

#[test]
fn a_client_whose_only_broker_is_left_out_for_a_moment_is_stranded_and_says_so() {
    let broker = Broker::start();
    // On a full machine one or the other is quicker, and finds the broker again.
    let is_lost = |client: &BaseConsumer<Context>| client.fetch_metadata(None, Duration::from_secs(2)).is_err();
    let client = (0..20).map(|_| client_of(&broker)).find(is_lost).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !client.context().statistics().is_stranded() {
        assert!(Instant::now() < deadline, "it does not say so");
        // Callbacks run inside poll.
        client.poll(Duration::from_millis(100));
    }
    assert!(is_lost(&client), "it looks for none any more");
}
