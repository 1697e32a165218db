//! Every key of the processor's configuration. The doc comments are the operator's documentation (`processor config docs`).

use std::net::SocketAddr;

use coderelay_runtime::ServiceConfig;
use coderelay_runtime::admin::AdminConfig;
use coderelay_runtime::config::{HumanDuration, HumanSize};
use coderelay_runtime::kafka::{self, KafkaConfig};
use coderelay_runtime::lifecycle::LifecycleConfig;
use coderelay_runtime::telemetry::TelemetryConfig;
use coderelay_schemas::topics::TopicNames;
use coderelay_schemas::validate::PacketLimits;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cql::CqlConfig;

/// librdkafka properties on which exactly-once rests; the pass-through map may not set them.
const RESERVED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "isolation.level",
    "log.connection.close",
    "log_level",
    "message.max.bytes",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "session.timeout.ms",
    "socket.timeout.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// The processor: takes packets from Kafka, removes duplicates and stores each exactly once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessorConfig {
    /// How to reach Kafka.
    #[garde(dive, custom(kafka::reserved(RESERVED)))]
    pub kafka: KafkaConfig,
    /// The consumer group.
    #[garde(dive)]
    pub group: GroupConfig,
    /// Where records are read.
    #[garde(dive)]
    pub source: SourceConfig,
    /// Names of the topics that are written. Change them only to run several deployments on one cluster.
    #[garde(dive)]
    pub topics: TopicNames,
    /// The store.
    #[garde(dive)]
    pub cql: CqlConfig,
    /// Size of a batch: one batch is one Kafka transaction.
    #[garde(dive)]
    pub batch: BatchConfig,
    /// Removal of duplicates.
    #[garde(dive)]
    pub dedup: DedupConfig,
    /// How fast to pull when the store slows down.
    #[garde(dive)]
    pub pace: PaceConfig,
    /// Expiry of old records while the backlog is long.
    #[garde(dive)]
    pub expiry: ExpiryConfig,
    /// What a packet may be. Keep it equal to ingest's.
    #[garde(dive)]
    pub limits: PacketLimits,
    /// The admin port.
    #[garde(dive)]
    pub admin: AdminConfig,
    /// Logs and traces.
    #[garde(dive)]
    pub telemetry: TelemetryConfig,
    /// How the process ends.
    #[garde(dive)]
    pub lifecycle: LifecycleConfig,
}

impl Default for ProcessorConfig {
    fn default() -> Self {
        Self {
            kafka: KafkaConfig::default(),
            group: GroupConfig::default(),
            source: SourceConfig::default(),
            topics: TopicNames::default(),
            cql: CqlConfig::default(),
            batch: BatchConfig::default(),
            dedup: DedupConfig::default(),
            pace: PaceConfig::default(),
            expiry: ExpiryConfig::default(),
            limits: PacketLimits::default(),
            // Not ingest's, so that both run on one machine as they come.
            admin: AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9465)) },
            telemetry: TelemetryConfig::default(),
            lifecycle: LifecycleConfig::default(),
        }
    }
}

impl ServiceConfig for ProcessorConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn lifecycle(&self) -> &LifecycleConfig {
        &self.lifecycle
    }
}

/// The consumer group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// `group.id`. All processors of one deployment share it.
    #[garde(length(min = 1, max = 100))]
    pub id: String,
    /// Name of this process within the group: stable over restarts, different for each running process (the pod's ordinal, say).
    /// Two processes with one name fence each other, and one of them stops.
    #[garde(length(min = 1, max = 100), pattern("^[A-Za-z0-9._-]+$"))]
    pub instance: String,
    /// Workers, each a thread with its own consumer and transactional producer. More than the partitions are idle.
    #[garde(range(min = 1, max = 256))]
    pub workers: usize,
    /// A process that is away longer than this loses its partitions to the others; a restart within it costs no rebalance.
    /// The brokers' `group.min.session.timeout.ms` (6 s) bounds it too.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(300)))]
    pub session_timeout: HumanDuration,
    /// How long the broker keeps a transaction open that nobody ends. Readers of the published topic wait as long for a dead processor.
    #[garde(range(min = HumanDuration::from_secs(3), max = HumanDuration::from_secs(900)))]
    pub transaction_timeout: HumanDuration,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            id: "coderelay-processor".into(),
            instance: "0".into(),
            workers: 2,
            session_timeout: HumanDuration::from_secs(30),
            transaction_timeout: HumanDuration::from_secs(15),
        }
    }
}

/// Where records are read.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// Topics to consume. One that starts with `^` is a regular expression: the default takes this region's topic and every mirrored one.
    #[garde(length(min = 1), inner(length(min = 1)))]
    pub topics: Vec<String>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self { topics: vec![r"^([^.]+\.)?code\.packets\.v1$".into()] }
    }
}

/// Size of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Records at most.
    #[garde(range(min = 1, max = 100_000))]
    pub max_records: usize,
    /// Bytes at most; a larger record travels alone.
    #[garde(range(min = HumanSize::from_kib(1), max = HumanSize::from_mib(256)))]
    pub max_bytes: HumanSize,
    /// How long the first record of a batch waits for company. What is there by then travels along, also at 0.
    #[garde(range(max = HumanDuration::from_secs(10)))]
    pub linger: HumanDuration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_records: 5000, max_bytes: HumanSize::from_mib(16), linger: HumanDuration::from_millis(5) }
    }
}

/// Removal of duplicates.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct DedupConfig {
    /// How long an accepted id is remembered. Has to be shorter than the ledger topic's retention, which is one day.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(82_800)))]
    pub window: HumanDuration,
    /// Ids remembered at once, over all workers: at least 9/8 of the window times the packets accepted per second, at 30 to 59 bytes of
    /// memory each. When more are accepted within the window, the oldest are forgotten early, and a duplicate of those would pass:
    /// `coderelay_dedup_evictions_total` counts them.
    #[garde(range(min = 1))]
    pub capacity: u64,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { window: HumanDuration::from_secs(3600), capacity: 10_000_000 }
    }
}

/// How fast to pull when the store slows down: additive increase, multiplicative decrease. Only records that the store is asked to write
/// count; duplicates and dead letters pass at any rate.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct PaceConfig {
    /// Records per second and worker below which the pull rate never falls.
    #[garde(range(min = 0.1))]
    pub floor: f64,
    /// Records per second and worker above which it never rises. Unset: no ceiling.
    #[garde(inner(range(min = 0.1)), custom(above(self.floor)))]
    pub ceiling: Option<f64>,
    /// Latency of a store write above which the store counts as congested.
    #[garde(range(min = HumanDuration::from_millis(1)))]
    pub latency_target: HumanDuration,
}

impl Default for PaceConfig {
    fn default() -> Self {
        Self { floor: 30.0, ceiling: None, latency_target: HumanDuration::from_secs(1) }
    }
}

fn above(floor: f64) -> impl FnOnce(&Option<f64>, &()) -> garde::Result {
    move |ceiling, ()| match ceiling {
        Some(ceiling) if *ceiling < floor => Err(garde::Error::new(format!("must not be below pace.floor ({floor})"))),
        _ => Ok(()),
    }
}

/// Expiry of old records while the backlog is long. They go to the dead-letter topic as `expired` and can be replayed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct ExpiryConfig {
    /// Whether old records expire at all.
    #[garde(skip)]
    pub enabled: bool,
    /// Records waiting in a worker's partitions above which they do.
    #[garde(skip)]
    pub backlog: u64,
    /// Age, by the record's timestamp, from which they do.
    #[garde(range(min = HumanDuration::from_secs(1)))]
    pub max_age: HumanDuration,
}

impl Default for ExpiryConfig {
    fn default() -> Self {
        Self { enabled: false, backlog: 1_000_000, max_age: HumanDuration::from_secs(300) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        ProcessorConfig::default().validate().unwrap();
    }

    #[test]
    fn rules_across_keys_are_checked() {
        let mut config = ProcessorConfig::default();
        config.pace.ceiling = Some(10.0);
        config.cql.tls.cert = Some("client.pem".into());
        config.kafka.properties.insert("isolation.level".into(), "read_uncommitted".into());
        let report = config.validate().unwrap_err().to_string();
        for key in ["pace.ceiling", "cql.tls.cert", "isolation.level"] {
            assert!(report.contains(key), "{key} in {report}");
        }
    }
}
