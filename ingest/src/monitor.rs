//! Whether this instance should get work: Kafka answers, there is room, nobody asked it to leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coderelay_runtime::admin::Readiness;
use tokio::task::spawn_blocking;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::admission::Admission;
use crate::metrics::METRICS;
use crate::mirror::Mirror;
use crate::producer::Producer;
use crate::service::IngestService;

/// The named checks behind `/readyz` and gRPC health.
pub const CHECKS: [&str; 2] = [KAFKA, ADMISSION];
const KAFKA: &str = "kafka";
const ADMISSION: &str = "admission";
/// The check of a deployment that has a mirror. It holds the start back until it was made once, and counts no longer then.
pub const MIRROR: &str = "mirror";

/// How often Kafka is asked while it answers, and while it does not.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_AGAIN: Duration = Duration::from_millis(500);
/// How long a broker may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the budget is looked at, and how long it must be full to count.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const FULL_FOR: Duration = Duration::from_secs(5);

/// Asks Kafka for the topic, for ever.
pub async fn watch_kafka(producer: Arc<Producer>, readiness: Readiness) {
    loop {
        let asked = Arc::clone(&producer);
        let Ok(outcome) = spawn_blocking(move || asked.probe(PROBE_TIMEOUT)).await else { return };
        let pause = if outcome.is_ok() { PROBE_EVERY } else { PROBE_AGAIN };
        readiness.set(KAFKA, outcome);
        tokio::time::sleep(pause).await;
    }
}

/// Asks the other region whether it can confirm packets, for ever. That it cannot does not make this instance unready: a region
/// must go on when the other is lost.
pub async fn watch_mirror(mirror: Arc<Mirror>, readiness: Readiness) {
    loop {
        let asked = Arc::clone(&mirror);
        let Ok(outcome) = spawn_blocking(move || asked.probe(PROBE_TIMEOUT)).await else { return };
        let pause = if outcome.is_ok() { PROBE_EVERY } else { PROBE_AGAIN };
        METRICS.mirror_answers(outcome.is_ok());
        readiness.note(MIRROR, outcome);
        tokio::time::sleep(pause).await;
    }
}

/// Watches the budget, for ever. A full budget is how backpressure works; one that stays full says that others should take
/// the work.
pub async fn watch_admission(admission: Arc<Admission>, high_mark: f64, readiness: Readiness) {
    let mut below = Instant::now();
    loop {
        let spent = admission.fill();
        if spent < high_mark {
            below = Instant::now();
        }
        let full = below.elapsed() >= FULL_FOR;
        readiness
            .set(ADMISSION, if full { Err(format!("the budget is spent to {:.0} %", spent * 100.0)) } else { Ok(()) });
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Tells gRPC health what readiness says, for ever: for the server as a whole (`""`) and for the service by name.
pub async fn tell_health(readiness: Readiness, health: HealthReporter) {
    loop {
        let ready = readiness.is_ready();
        set_health(&health, ready).await;
        readiness.wait_for(!ready).await;
    }
}

/// Sets the status of both names.
pub async fn set_health(health: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status("", status).await;
    health.set_service_status(IngestService::NAME, status).await;
}
