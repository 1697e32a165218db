//! The section `cql` of the configuration.

use std::path::PathBuf;

use coderelay_runtime::config::{HumanDuration, HumanSize, Secret};
use coderelay_schemas::cql;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
            batch_rows: 100,
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
    #[schemars(extend("format" = "pem-certificates"))]
    pub ca: Option<PathBuf>,
    /// PEM file with this client's certificate.
    #[garde(custom(with(self.key.is_some())))]
    #[schemars(extend("format" = "pem-certificates"))]
    pub cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[garde(custom(with(self.cert.is_some())))]
    #[schemars(extend("format" = "pem-key"))]
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
