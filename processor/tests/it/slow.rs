//! A store that is merely slow: the processor gives way, and takes up its pace again.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{World, batch, eventually};

/// A way to the store on which every answer takes a while longer.
struct SlowPath {
    address: String,
    delay_ms: Arc<AtomicU64>,
}

impl SlowPath {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_ms);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, delay) = (server.clone(), Arc::clone(&delay));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((client_reads, client_writes), (server_reads, server_writes)) =
                        (client.into_split(), server.into_split());
                    tokio::spawn(relay(client_reads, server_writes, Arc::default()));
                    relay(server_reads, client_writes, delay).await;
                });
            }
        });
        Self { address, delay_ms }
    }

    fn delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }
}

async fn relay(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, delay_ms: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_millis(delay_ms.load(Ordering::Relaxed))).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The other end has to learn of it.
    let _ = to.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_is_asked_for_less_and_nothing_is_lost_or_dead_lettered() {
    let world = World::new().await;
    let path = SlowPath::to(world.stack().cql_contact()).await;
    let builder = world.processor("a").set("cql.contact_points", &path.address).set("group.workers", 1);
    let builder = builder.set("batch.max_records", 50).set("pace.latency_target", "250ms");
    let processor = builder.ready().await;
    // Absent while nothing limits, which reads as 0.
    let pull_rate = async || world.metric(&processor, "coderelay_processor_pull_rate", "worker=\"0\"").await;

    let (before, ids) = batch(0..1000);
    world.produce(&before);
    world.settled().await;

    path.delay(Duration::from_millis(500));
    let (slow, slow_ids) = batch(1000..2000);
    world.produce(&slow);
    eventually("the pull rate falls", async || (1.0..200.0).contains(&pull_rate().await)).await;
    assert!(world.lag().await > 0, "it fell while there was work");
    processor.process.is_ready().await.unwrap();

    path.delay(Duration::ZERO);
    let (mut after, mut after_ids) = (2000, Vec::new());
    eventually("nothing limits any more", async || {
        let (records, ids) = batch(after..after + 100);
        world.produce(&records);
        after_ids.extend(ids);
        after += 100;
        pull_rate().await < 0.5
    })
    .await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&[ids, slow_ids, after_ids].concat()).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_pass_at_any_rate_since_the_store_is_not_asked_for_them() {
    let world = World::new().await;
    let processor =
        world.processor("a").set("group.workers", 1).set("pace.floor", 1).set("pace.ceiling", 10).ready().await;
    let (records, ids) = batch(0..50);
    world.produce(&records);
    // At ten a second these would take more than three minutes.
    for _ in 0..40 {
        world.produce(&records);
    }
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&ids).await;
}
