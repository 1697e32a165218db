//! `code.packets.v1 ─▶ source ─▶ batch (decode, dedup) ─▶ cycle ─▶ cql ─▶ transaction (deduped, dlq, ledger, offsets) ─▶ memory`
//!
//! The processor is a consumer group member that removes duplicates and stores each packet exactly once. Read [`cycle`] first: it is the
//! heart, and it knows neither Kafka nor CQL, only the traits in [`ports`].

pub mod batch;
pub mod config;
pub mod cql;
pub mod cycle;
pub mod decode;
pub mod dedup;
pub mod kafka;
pub mod metrics;
pub mod pace;
pub mod ports;
pub mod record;
pub mod worker;
pub mod failpoint;

mod trace;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use coderelay_runtime::admin::{self, Readiness};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::batch::BatchLimits;
use crate::config::ProcessorConfig;
use crate::cycle::{CycleLimits, Expiry};
use crate::dedup::Memory;
use crate::kafka::Identity;
use crate::metrics::Metrics;
use crate::pace::PaceLimits;
use crate::worker::Shared;

/// Runs the processor until `shutdown` is cancelled: the batch in hand is finished, then the workers leave.
///
/// # Errors
/// When the admin port cannot be bound, the TLS configuration is unusable, or a worker was fenced by another process.
pub async fn run(config: ProcessorConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _failpoints = failpoint::arm();
    let readiness = Readiness::new(["store", "assignment"]);
    let _admin = admin::serve(&config.admin, readiness.clone()).await?;
    let Some(inserter) = cql::connect(&config.cql, &shutdown).await? else {
        return Ok(());
    };
    let memory = Arc::new(Memory::new(config.dedup.capacity, config.dedup.window.get()));
    let metrics = Arc::new(Metrics::new(&memory));
    metrics.store_up(true);
    let shared = Arc::new(Shared {
        memory,
        metrics,
        inserter,
        limits: limits(&config),
        pace: PaceLimits {
            floor: config.pace.floor,
            ceiling: config.pace.ceiling,
            latency_target: config.pace.latency_target.get(),
            concurrency: config.cql.max_in_flight.div_ceil(config.group.workers),
        },
        runtime: Handle::current(),
        // Workers end with the process, and all of them when one is fenced.
        stop: shutdown.child_token(),
    });
    let mut workers = Vec::with_capacity(config.group.workers);
    for number in 0..config.group.workers {
        let worker = worker::spawn(number, identity(&config, number, &shared.stop), Arc::clone(&shared))
            .context("starting a worker")?;
        workers.push((number, worker));
    }
    info!(workers = config.group.workers, group = config.group.id, instance = config.group.instance, "processing");

    watch(&readiness, &shared, config.group.workers).await;
    readiness.drain();
    for (number, worker) in workers {
        match tokio::task::spawn_blocking(move || worker.join()).await? {
            Ok(result) => result.with_context(|| format!("worker {number}"))?,
            Err(_) => bail!("worker {number} panicked"),
        }
    }
    Ok(())
}

/// Keeps the readiness checks current until the workers are to stop.
async fn watch(readiness: &Readiness, shared: &Shared, workers: usize) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let assigned = shared.metrics.assigned_workers();
        let waiting = || format!("{assigned} of {workers} workers have an assignment");
        readiness.set("assignment", if assigned == workers { Ok(()) } else { Err(waiting()) });
        readiness
            .set("store", if shared.metrics.is_store_up() { Ok(()) } else { Err("the store does not take writes") });
    }
}

fn limits(config: &ProcessorConfig) -> CycleLimits {
    CycleLimits {
        batch: BatchLimits { records: config.batch.max_records, bytes: config.batch.max_bytes.as_usize() },
        linger: config.batch.linger.get(),
        window: config.dedup.window.get(),
        packet: config.limits.clone(),
        expiry: config
            .expiry
            .enabled
            .then(|| Expiry { backlog: config.expiry.backlog, max_age: config.expiry.max_age.get() }),
    }
}

/// What worker `number` is to Kafka.
fn identity(config: &ProcessorConfig, number: usize, stop: &CancellationToken) -> Identity {
    let mut client = coderelay_runtime::kafka::client_config(&config.kafka);
    if config.kafka.client_id.is_none() {
        client.set("client.id", "coderelay-processor");
    }
    Identity {
        client,
        group: config.group.id.clone(),
        member: format!("{}-{}-{number}", config.group.id, config.group.instance),
        sources: config.source.topics.clone(),
        topics: config.topics.clone(),
        session_timeout: config.group.session_timeout.get(),
        transaction_timeout: config.group.transaction_timeout.get(),
        stop: stop.clone(),
    }
}
