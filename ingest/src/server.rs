//! The process: port, calls, Kafka client and probes put together, and taken apart again in the right order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coderelay_runtime::CancellationToken;
use coderelay_runtime::admin::{self, Readiness};
use coderelay_runtime::config::HumanDuration;
use coderelay_schemas::FILE_DESCRIPTOR_SET;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_reflection::server::Builder as Reflection;

use crate::admission::{Admission, Limits};
use crate::config::{GrpcConfig, IngestConfig, TlsConfig};
use crate::frames::FrameLimits;
use crate::intake::Intake;
use crate::listener::{Deadlines, LINGER};
use crate::metrics::Metrics;
use crate::mirror::Mirror;
use crate::producer::Producer;
use crate::service::{CallLimits, IngestService};
use crate::unread::Unread;
use crate::validate::Validator;
use crate::{follower, listener, monitor};

/// Reset streams that a connection may have waiting to be accepted, against rapid resets (CVE-2023-44487).
const PENDING_RESETS: usize = 32;

/// Streams of a connection that may be reset here for its client's mistakes, against resets that the client provokes
/// (CVE-2025-8671). tonic's default is no limit.
const PROVOKED_RESETS: usize = 1_024;

/// Largest request of the health and reflection services, whose requests are names. Their messages are in no budget.
const NAMES_SIZE: usize = 4 * 1024;

/// Part of the grace period that is kept for answering what Kafka did not acknowledge in time.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

/// Runs the service until `shutdown` is cancelled and what was taken by then is answered.
///
/// # Errors
/// A port that cannot be bound, a setting that librdkafka refuses, or a Kafka client that has failed for good.
pub async fn run(config: IngestConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let has_mirror = config.mirror.is_some();
    let readiness = Readiness::new(monitor::CHECKS.into_iter().chain(has_mirror.then_some(monitor::MIRROR)));
    let admin = admin::serve(&config.admin, readiness.clone()).await?;
    let listener = listener::bind(config.grpc.listen).await?;
    let broken = CancellationToken::new();
    let mirror = config.mirror.as_ref().map(|mirror| Mirror::new(&config, mirror)).transpose();
    let mirror = mirror.context("the other region's Kafka client cannot be made")?.map(Arc::new);
    let producer = Producer::new(&config, mirror.clone(), broken.clone()).context("the Kafka client cannot be made")?;
    let intake = Arc::new(intake(&config, Arc::new(producer), mirror));
    Metrics::watch(&intake.admission, &intake.unread);
    let following = intake.mirror.as_ref().map(|mirror| {
        Metrics::watch_mirror(mirror);
        follower::follow(Arc::clone(mirror), Arc::clone(&intake.producer))
    });
    let following = following.transpose().context("no thread to follow the other region")?;

    let (health, health_service) = health_reporter();
    monitor::set_health(&health, false).await;
    let watches = watches(&config, &intake, &readiness, health);
    let mut served = serve(&config.grpc, listener, Arc::clone(&intake), health_service)?;

    tokio::select! {
        () = shutdown.cancelled() => tracing::info!("draining"),
        () = broken.cancelled() => tracing::error!("leaving: the Kafka client has failed for good"),
        ended = &mut served => anyhow::bail!("the gRPC server ended by itself: {ended:?}"),
    }
    readiness.drain();
    let end = Instant::now() + config.lifecycle.grace.get();
    drain(&intake, served, end).await;
    drop((watches, following));
    admin.shutdown().await;
    anyhow::ensure!(!broken.is_cancelled(), "the Kafka client has failed for good; a new instance can go on");
    Ok(())
}

fn intake(config: &IngestConfig, producer: Arc<Producer>, mirror: Option<Arc<Mirror>>) -> Intake {
    let limits = Limits {
        bytes: config.admission.bytes.get() as u32,
        packets: config.admission.packets,
        overflow: config.grpc.max_message_size.get() as u32,
        max_wait: config.admission.max_wait.get(),
    };
    // Every packet on its way has its result still to come, and as many may be waiting to be read.
    let results = config.admission.packets.saturating_mul(2).max(config.grpc.max_packets);
    Intake {
        unread: Arc::new(Unread::new(results)),
        admission: Arc::new(Admission::new(limits)),
        validator: Validator::new(config.limits.clone()),
        producer,
        mirror,
        default_ack: config.ack.default,
        max_packets: config.grpc.max_packets as usize,
        retry_after: config.admission.retry_after.get(),
        exports_traces: config.telemetry.otlp_endpoint.is_some(),
        draining: CancellationToken::new(),
        calls: TaskTracker::new(),
    }
}

/// Tasks that keep readiness and health up to date, until dropped.
fn watches(config: &IngestConfig, intake: &Intake, readiness: &Readiness, health: HealthReporter) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    watches.spawn(monitor::watch_kafka(Arc::clone(&intake.producer), readiness.clone()));
    let high_mark = config.admission.high_mark;
    watches.spawn(monitor::watch_admission(Arc::clone(&intake.admission), high_mark, readiness.clone()));
    if let Some(mirror) = &intake.mirror {
        watches.spawn(monitor::watch_mirror(Arc::clone(mirror), readiness.clone()));
        watches.spawn(Arc::clone(mirror).expire());
    }
    watches.spawn(monitor::tell_health(readiness.clone(), health));
    watches
}

/// Starts to serve. The task ends when draining has begun and every connection is closed.
fn serve(
    config: &GrpcConfig,
    listener: TcpListener,
    intake: Arc<Intake>,
    health: HealthServer<impl Health>,
) -> anyhow::Result<Serving> {
    let limits = CallLimits {
        frame: FrameLimits {
            max_message_size: config.max_message_size.get() as u32,
            idle_timeout: config.stream_idle_timeout.get(),
            message_timeout: config.message_timeout.get(),
        },
        unanswered: config.max_unanswered as usize,
        age: config.max_connection_age.map(HumanDuration::get),
    };
    let (draining, unread) = (intake.draining.clone(), Arc::clone(&intake.unread));
    let service = IngestService::new(intake, config.max_streams as usize, limits);
    // Python's client and older tools ask for v1alpha only.
    let describe = || Reflection::configure().register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    let reflection = describe().build_v1()?.max_decoding_message_size(NAMES_SIZE);
    let reflection_alpha = describe().build_v1alpha()?.max_decoding_message_size(NAMES_SIZE);

    let mut server = Server::builder()
        .initial_stream_window_size(config.stream_window.get() as u32)
        .initial_connection_window_size(config.connection_window.get() as u32)
        .max_concurrent_streams(config.max_streams_per_connection)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(PROVOKED_RESETS))
        .http2_keepalive_interval(Some(config.keepalive_interval.get()))
        .http2_keepalive_timeout(Some(config.keepalive_timeout.get()));
    if let Some(age) = limits.age {
        server = server.max_connection_age(age);
    }
    if let Some(tls) = &config.tls {
        server = server.tls_config(server_tls(tls)?.timeout(config.handshake_timeout.get()))?;
    }
    let address: SocketAddr = listener.local_addr()?;
    tracing::info!(%address, tls = config.tls.is_some(), "gRPC server listens");
    let (pings, patience) = (config.keepalive_interval.get(), config.keepalive_timeout.get());
    let deadlines = Deadlines {
        handshake: config.handshake_timeout.get(),
        // Longer than hyper waits for the answer to a ping: its own way to close a connection is the politer one.
        silence: pings + patience + LINGER,
        stall: patience + LINGER,
        tls: config.tls.is_some(),
    };
    let connections = listener::connections(listener, config.max_connections as usize, deadlines, unread);
    let serving = server
        .add_service(service)
        .add_service(health.max_decoding_message_size(NAMES_SIZE))
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(connections, draining.cancelled_owned());
    Ok(tokio::spawn(serving))
}

fn server_tls(config: &TlsConfig) -> anyhow::Result<ServerTlsConfig> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("grpc.tls: {} cannot be read", path.display()))
    };
    let identity = Identity::from_pem(read(&config.certificate)?, read(&config.key)?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(authority) = &config.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read(authority)?));
    }
    Ok(tls)
}

/// Reads no more, answers what was taken, closes the connections; then waits for what clients that had left had sent.
async fn drain(intake: &Intake, served: Serving, end: Instant) {
    intake.draining.cancel();
    intake.calls.close();
    let acknowledged = async {
        intake.calls.wait().await;
        intake.admission.idle().await;
    };
    if timeout_at(end - LAST_WORDS, acknowledged).await.is_err() {
        let waiting = intake.mirror.as_ref().map_or(0, |mirror| mirror.waiting());
        let in_flight = intake.producer.in_flight();
        tracing::warn!(in_flight, waiting, "Kafka, or the other region, did not acknowledge in time: giving up");
        intake.producer.give_up();
        if let Some(mirror) = &intake.mirror {
            mirror.give_up();
        }
        let _late = timeout_at(end - LINGER, intake.calls.wait()).await;
    }
    let _lingering = timeout_at(end.min(Instant::now() + LINGER), served).await;
}
