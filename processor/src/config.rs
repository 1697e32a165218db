//! Every key of the processor's configuration. The doc comments are the operator's documentation (`processor config docs`).

use std::path::PathBuf;

use coderelay_runtime::ServiceConfig;
use coderelay_runtime::admin::AdminConfig;
use coderelay_runtime::config::{HumanDuration, HumanSize, Secret};
use coderelay_runtime::kafka::{self, KafkaConfig};
use coderelay_runtime::lifecycle::LifecycleConfig;
use coderelay_runtime::telemetry::TelemetryConfig;
use coderelay_schemas::cql;
use coderelay_schemas::topics::TopicNames;
use coderelay_schemas::validate::PacketLimits;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// librdkafka properties on which exactly-once rests; the pass-through map may not set them.
const RESERVED: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "message.max.bytes",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "partitioner",
    "session.timeout.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// The processor: takes packets from Kafka, removes duplicates and stores each exactly once.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Validate)]
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
    pub packet: PacketLimits,
    /// The admin port.
    #[garde(dive)]
    pub admin: AdminSection,
    /// Logs and traces.
    #[garde(dive)]
    pub telemetry: TelemetryConfig,
    /// How the process ends.
    #[garde(dive)]
    pub lifecycle: LifecycleConfig,
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
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(1800)))]
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

/// The store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct CqlConfig {
    /// Nodes to start from, `host:port`; the others are learned from them.
    #[garde(length(min = 1), inner(length(min = 1)))]
    pub contact_points: Vec<String>,
    /// The keyspace.
    #[garde(pattern("^[a-z][a-z0-9_]{0,47}$"))]
    pub keyspace: String,
    /// Replicas that have to acknowledge a write.
    #[garde(skip)]
    pub consistency: Consistency,
    /// Datacenter to prefer. Unset: any.
    #[garde(inner(length(min = 1)))]
    pub datacenter: Option<String>,
    /// User name. Unset: no authentication.
    #[garde(inner(length(min = 1)))]
    pub username: Option<String>,
    /// Password.
    #[garde(skip)]
    pub password: Option<Secret>,
    /// Encryption.
    #[garde(dive)]
    pub tls: CqlTlsConfig,
    /// Create keyspace and table at start where they are missing: for development.
    #[garde(skip)]
    pub create_schema: bool,
    /// Replicas per datacenter of a keyspace created here.
    #[garde(range(min = 1, max = 9))]
    pub replication_factor: u32,
    /// Connections per node.
    #[garde(range(min = 1, max = 64))]
    pub pool_size: usize,
    /// Requests under way at once, over all workers. Above 1,024 per connection a slow node costs connections.
    #[garde(range(min = 1, max = 1024))]
    pub max_in_flight: usize,
    /// How long a write waits for one of them before it counts as failed.
    #[garde(range(min = HumanDuration::from_millis(1)))]
    pub acquire_timeout: HumanDuration,
    /// How long one request may take.
    #[garde(range(min = HumanDuration::from_millis(1)))]
    pub request_timeout: HumanDuration,
    /// How long connecting may take.
    #[garde(range(min = HumanDuration::from_millis(1)))]
    pub connect_timeout: HumanDuration,
    /// How often a failed write is tried again before fetching is paused until the store answers.
    #[garde(range(max = 10))]
    pub max_retries: usize,
    /// Wait before the first of them; it doubles each time.
    #[garde(range(min = HumanDuration::from_millis(1), max = HumanDuration::from_secs(60)))]
    pub retry_delay: HumanDuration,
    /// Rows of one CQL partition in one request.
    #[garde(range(min = 1, max = 1000))]
    pub batch_rows: usize,
    /// Bytes of one such request; a larger row travels alone.
    #[garde(range(min = HumanSize::from_kib(1), max = HumanSize::from_mib(16)))]
    pub batch_bytes: HumanSize,
}

impl Default for CqlConfig {
    fn default() -> Self {
        Self {
            contact_points: vec!["localhost:9042".into()],
            keyspace: cql::KEYSPACE.into(),
            consistency: Consistency::LocalQuorum,
            datacenter: None,
            username: None,
            password: None,
            tls: CqlTlsConfig::default(),
            create_schema: false,
            replication_factor: 1,
            pool_size: 2,
            max_in_flight: 128,
            acquire_timeout: HumanDuration::from_secs(5),
            request_timeout: HumanDuration::from_secs(5),
            connect_timeout: HumanDuration::from_secs(5),
            max_retries: 3,
            retry_delay: HumanDuration::from_secs(1),
            batch_rows: 40,
            batch_bytes: HumanSize::from_kib(256),
        }
    }
}

/// Encryption towards the store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct CqlTlsConfig {
    /// Whether to use TLS.
    #[garde(skip)]
    pub enabled: bool,
    /// PEM file with the certificate authorities. Unset: those of the system.
    #[garde(skip)]
    pub ca: Option<PathBuf>,
    /// PEM file with this client's certificate.
    #[garde(custom(with(self.key.is_some())))]
    pub cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[garde(custom(with(self.cert.is_some())))]
    pub key: Option<PathBuf>,
    /// Whether the nodes' certificates are checked.
    #[garde(skip)]
    pub verify: bool,
}

impl Default for CqlTlsConfig {
    fn default() -> Self {
        Self { enabled: false, ca: None, cert: None, key: None, verify: true }
    }
}

fn with(other: bool) -> impl FnOnce(&Option<PathBuf>, &()) -> garde::Result {
    move |this, ()| {
        let both_or_neither = this.is_some() == other;
        both_or_neither
            .then_some(())
            .ok_or_else(|| garde::Error::new("cert and key belong together: set both or neither"))
    }
}

/// Consistency of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// One replica.
    One,
    /// One replica of this datacenter.
    LocalOne,
    /// Most replicas of this datacenter.
    #[default]
    LocalQuorum,
    /// Most replicas.
    Quorum,
    /// Most replicas of every datacenter.
    EachQuorum,
    /// All replicas.
    All,
}

impl From<Consistency> for scylla::statement::Consistency {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::One => Self::One,
            Consistency::LocalOne => Self::LocalOne,
            Consistency::LocalQuorum => Self::LocalQuorum,
            Consistency::Quorum => Self::Quorum,
            Consistency::EachQuorum => Self::EachQuorum,
            Consistency::All => Self::All,
        }
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
    /// How long the first record of a batch waits for company.
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
    /// How long an accepted id is remembered. Must be shorter than the ledger topic's retention.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(604_800)))]
    pub window: HumanDuration,
    /// Ids remembered at once, over all workers. When more are accepted within the window, the oldest are forgotten early, and a duplicate
    /// of those would pass: `coderelay_dedup_evictions_total` counts them.
    #[garde(range(min = 1))]
    pub capacity: u64,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { window: HumanDuration::from_secs(3600), capacity: 10_000_000 }
    }
}

/// How fast to pull when the store slows down: additive increase, multiplicative decrease.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct PaceConfig {
    /// Records per second and worker below which the pull rate never falls.
    #[garde(range(min = 1.0))]
    pub floor: f64,
    /// Records per second and worker above which it never rises. Unset: no ceiling.
    #[garde(inner(range(min = 1.0)), custom(above(self.floor)))]
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

/// The admin port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Address and port of `/metrics`, `/livez` and `/readyz`; port 0 takes a free one. There is no authentication: open it to the
    /// network (`0.0.0.0:9465`) only where that is meant.
    #[garde(skip)]
    #[schemars(extend("format" = "socket-address"))]
    pub listen: std::net::SocketAddr,
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: std::net::SocketAddr::from(([127, 0, 0, 1], 9465)) }
    }
}

impl From<&AdminSection> for AdminConfig {
    fn from(section: &AdminSection) -> Self {
        Self { listen: section.listen }
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
