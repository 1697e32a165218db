//! The configuration of `ingest`: one table a concern, every key with its unit and default.
//!
//! Memory has one bound, the sum of: twice `admission.bytes` (a request while it is copied into the Kafka client),
//! `admission.packets` × 1 KiB, twice `admission.packets` × 1 KiB for results that clients leave unread, `grpc.max_message_size` for
//! refused requests, 16 MiB a core for inflating, and what HTTP/2 holds of streams that nobody reads while the budget is spent
//! (`grpc.stream_window` for each such stream, `grpc.connection_window` at most for each connection).

use std::net::SocketAddr;
use std::path::PathBuf;

use coderelay_runtime::admin::AdminConfig;
use coderelay_runtime::config::{HumanDuration, HumanSize};
use coderelay_runtime::kafka::{KafkaConfig, reserved};
use coderelay_runtime::lifecycle::LifecycleConfig;
use coderelay_runtime::service::ServiceConfig;
use coderelay_runtime::telemetry::TelemetryConfig;
use coderelay_schemas::topics::TopicNames;
use coderelay_schemas::validate::PacketLimits;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ack::Ack;
use crate::mirror;
use crate::producer::RESERVED;

/// Everything `ingest` can be told.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// Name of this region, written to every record's `region` header.
    #[garde(length(min = 1, max = 64), pattern("^[A-Za-z0-9._-]+$"))]
    pub region: String,
    /// The gRPC port and its limits.
    #[garde(dive)]
    pub grpc: GrpcConfig,
    /// What one packet may be.
    #[garde(dive)]
    pub limits: PacketLimits,
    /// How much may be on its way to Kafka.
    #[garde(dive)]
    pub admission: AdmissionConfig,
    /// How records are produced.
    #[garde(dive)]
    pub producer: ProducerConfig,
    /// The Kafka cluster.
    #[garde(dive, custom(reserved(RESERVED)))]
    pub kafka: KafkaConfig,
    /// What acknowledgements promise.
    #[garde(custom(confirmable(self.mirror.is_some())))]
    pub ack: AckConfig,
    /// The other region, which confirms packets for `x-ack: mirrored`. Without this table that cannot be asked for.
    #[garde(dive, custom(elsewhere(&self.kafka)))]
    pub mirror: Option<MirrorConfig>,
    /// Topic names; `ingest` writes to `packets` only.
    #[garde(skip)]
    pub topics: TopicNames,
    /// How the process ends.
    #[garde(dive)]
    pub lifecycle: LifecycleConfig,
    /// Metrics and probes.
    #[garde(dive)]
    pub admin: AdminConfig,
    /// Logs and traces.
    #[garde(dive)]
    pub telemetry: TelemetryConfig,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            region: "local".to_owned(),
            grpc: GrpcConfig::default(),
            limits: PacketLimits::default(),
            admission: AdmissionConfig::default(),
            producer: ProducerConfig::default(),
            kafka: KafkaConfig::default(),
            ack: AckConfig::default(),
            mirror: None,
            topics: TopicNames::default(),
            lifecycle: LifecycleConfig::default(),
            admin: AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) },
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl ServiceConfig for IngestConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn lifecycle(&self) -> &LifecycleConfig {
        &self.lifecycle
    }
}

/// The gRPC port and its limits.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address and port to listen on.
    #[garde(skip)]
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// TLS; without this table the port speaks plain HTTP/2.
    #[garde(dive)]
    pub tls: Option<TlsConfig>,
    /// Largest request message, before and after gRPC compression. A larger one ends the call with `OUT_OF_RANGE`.
    #[garde(range(min = HumanSize::from_kib(64), max = HumanSize::from_mib(256)))]
    pub max_message_size: HumanSize,
    /// Most packets in one request. More end the call with `INVALID_ARGUMENT`.
    #[garde(range(min = 1, max = 100_000))]
    pub max_packets: u32,
    /// Most client connections; further ones wait in the listener's backlog.
    #[garde(range(min = 1, max = 100_000))]
    pub max_connections: u32,
    /// Most concurrent calls on one connection; clients queue further ones.
    #[garde(range(min = 1, max = 10_000))]
    pub max_streams_per_connection: u32,
    /// Most concurrent calls in all; further ones are answered `RESOURCE_EXHAUSTED`.
    #[garde(range(min = 1, max = 1_000_000))]
    pub max_streams: u32,
    /// Most requests of one stream whose answers the client has not taken. At the limit the stream is not read.
    #[garde(range(min = 1, max = 10_000))]
    pub max_unanswered: u32,
    /// HTTP/2 flow-control window of a stream. Bounds a stream's rate to one window per round trip.
    #[garde(range(min = HumanSize::from_kib(64), max = HumanSize::from_mib(64)))]
    pub stream_window: HumanSize,
    /// HTTP/2 flow-control window of a connection. Several times `stream_window`, or one slow stream starves the others.
    #[garde(range(max = HumanSize::from_mib(256)), custom(not_below(self.stream_window)))]
    pub connection_window: HumanSize,
    /// A stream on which nothing moves for this long ends with `DEADLINE_EXCEEDED`.
    #[garde(range(min = HumanDuration::from_millis(100), max = HumanDuration::from_secs(86_400)))]
    pub stream_idle_timeout: HumanDuration,
    /// A message that takes longer than this from its first byte to its last ends its call with `DEADLINE_EXCEEDED`. So does one,
    /// after twice `admission.max_wait`, that will take longer at its present rate while others wait for the room it has reserved.
    #[garde(range(min = HumanDuration::from_millis(100), max = HumanDuration::from_secs(3_600)))]
    pub message_timeout: HumanDuration,
    /// How long a client may take to begin: for its TLS handshake, or for the first bytes of HTTP/2 if there is no TLS. Then its
    /// connection is closed.
    #[garde(range(min = HumanDuration::from_millis(100), max = HumanDuration::from_secs(3_600)))]
    pub handshake_timeout: HumanDuration,
    /// How often a connection is pinged. One that does not answer within `keepalive_timeout` is closed.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(3_600)))]
    pub keepalive_interval: HumanDuration,
    /// How long a ping may stay unanswered, and anything else that is sent to a client unread by it.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(3_600)))]
    pub keepalive_timeout: HumanDuration,
    /// Age at which a connection is asked to leave (GOAWAY) and at which a stream ends with `UNAVAILABLE`, so that clients
    /// spread over new instances behind a layer-4 balancer. Unset: never.
    #[garde(inner(range(min = HumanDuration::from_secs(1))))]
    pub max_connection_age: Option<HumanDuration>,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            tls: None,
            max_message_size: HumanSize::from_mib(16),
            max_packets: 10_000,
            max_connections: 1_024,
            max_streams_per_connection: 100,
            max_streams: 4_096,
            max_unanswered: 64,
            stream_window: HumanSize::from_kib(256),
            connection_window: HumanSize::from_mib(1),
            stream_idle_timeout: HumanDuration::from_secs(600),
            message_timeout: HumanDuration::from_secs(30),
            handshake_timeout: HumanDuration::from_secs(10),
            keepalive_interval: HumanDuration::from_secs(30),
            keepalive_timeout: HumanDuration::from_secs(20),
            max_connection_age: None,
        }
    }
}

fn not_below(stream_window: HumanSize) -> impl FnOnce(&HumanSize, &()) -> garde::Result {
    move |connection_window, ()| {
        if *connection_window >= stream_window {
            return Ok(());
        }
        Err(garde::Error::new(format!("must be at least grpc.stream_window ({stream_window}), better several times")))
    }
}

/// Certificate and key of the gRPC port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate chain.
    #[garde(skip)]
    #[schemars(extend("format" = "pem-certificates"))]
    pub certificate: PathBuf,
    /// PEM file with the private key.
    #[garde(skip)]
    #[schemars(extend("format" = "pem-key"))]
    pub key: PathBuf,
    /// PEM file with the authority that must have signed clients' certificates. Unset: clients need none.
    #[serde(default)]
    #[garde(skip)]
    #[schemars(extend("format" = "pem-certificates"))]
    pub client_ca: Option<PathBuf>,
}

/// How much may be on its way to Kafka at one time.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Bytes of requests between the socket and Kafka's acknowledgement.
    #[garde(range(min = HumanSize::from_mib(1), max = HumanSize::from_mib(2_048)))]
    pub bytes: HumanSize,
    /// Packets between the socket and Kafka's acknowledgement.
    #[garde(range(min = 100, max = 10_000_000))]
    pub packets: u32,
    /// How long a request waits for room, unread, before its packets are answered `RESOURCE_EXHAUSTED`.
    #[garde(range(max = HumanDuration::from_secs(60)))]
    pub max_wait: HumanDuration,
    /// The delay that `RetryInfo` asks clients for.
    #[garde(range(min = HumanDuration::from_millis(1), max = HumanDuration::from_secs(600)))]
    pub retry_after: HumanDuration,
    /// Share of the budget, 0 to 1, above which, if it lasts for 5 s, the service calls itself not ready.
    #[garde(range(min = 0.1, max = 1.0))]
    pub high_mark: f64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            bytes: HumanSize::from_mib(64),
            packets: 32_768,
            max_wait: HumanDuration::from_secs(2),
            retry_after: HumanDuration::from_secs(1),
            high_mark: 0.95,
        }
    }
}

/// How records are produced. Idempotence, `acks=all` and the partitioner are fixed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct ProducerConfig {
    /// How long a record waits for others to share a request to the broker (`linger.ms`).
    #[garde(range(max = HumanDuration::from_secs(1)))]
    pub linger: HumanDuration,
    /// Compression of record batches. Content is gzip already: only repository names and metadata shrink.
    #[garde(skip)]
    pub compression: Compression,
    /// How long a record is tried before its packet is answered `UNAVAILABLE` (`message.timeout.ms`).
    #[garde(range(min = HumanDuration::from_millis(100), max = HumanDuration::from_secs(3_600)))]
    pub message_timeout: HumanDuration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: HumanDuration::from_millis(3),
            compression: Compression::None,
            message_timeout: HumanDuration::from_secs(30),
        }
    }
}

/// What acknowledgements promise.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AckConfig {
    /// What the acknowledgement of a packet promises where the call's metadata has no `x-ack`. `mirrored` needs the table `mirror`.
    pub default: Ack,
}

fn confirmable(has_mirror: bool) -> impl FnOnce(&AckConfig, &()) -> garde::Result {
    move |ack, ()| {
        if ack.default == Ack::Local || has_mirror {
            return Ok(());
        }
        Err(garde::Error::new("default: must be local, unless mirror.kafka.bootstrap_servers names the other region"))
    }
}

/// The other region, which `MirrorMaker` 2 mirrors this one's packets to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// The other region's Kafka cluster. `ingest` only reads there, and only the topic `offsets_topic`.
    #[garde(dive, custom(reserved(mirror::RESERVED)))]
    pub kafka: KafkaConfig,
    /// This region's name in `MirrorMaker`'s configuration (`clusters`). Unset: `region`.
    #[serde(default)]
    #[garde(inner(length(min = 1, max = 64), pattern("^[A-Za-z0-9._-]+$")))]
    pub source: Option<String>,
    /// The topic in the other region to which `MirrorMaker`'s worker writes how far it has got (`offset.storage.topic`). Unset: that of
    /// its dedicated mode, `mm2-offsets.<source>.internal`.
    #[serde(default)]
    #[garde(inner(length(min = 1, max = 249)))]
    pub offsets_topic: Option<String>,
    /// How long a packet that this region has may wait for the other's confirmation. Then it is answered `UNAVAILABLE`. Default: 5s.
    #[serde(default = "max_wait")]
    #[garde(range(min = HumanDuration::from_millis(10), max = HumanDuration::from_secs(60)))]
    pub max_wait: HumanDuration,
}

const fn max_wait() -> HumanDuration {
    HumanDuration::from_secs(5)
}

fn elsewhere(here: &KafkaConfig) -> impl FnOnce(&Option<MirrorConfig>, &()) -> garde::Result {
    move |mirror, ()| match mirror {
        Some(mirror) if mirror.kafka.bootstrap_servers == here.bootstrap_servers => {
            let message = "kafka.bootstrap_servers: must be the other region's, and are this region's";
            Err(garde::Error::new(message))
        }
        _ => Ok(()),
    }
}

/// Compression of record batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// Zstandard.
    Zstd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use coderelay_runtime::config::{Sources, load};

    fn with(settings: &[&str]) -> Result<IngestConfig, String> {
        let flags = settings.iter().map(|setting| setting.parse().unwrap()).collect();
        load(&Sources { flags, ..Sources::default() }).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = with(&[]).unwrap();
        assert_eq!(config.grpc.listen.to_string(), "127.0.0.1:50051");
        assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9464");
        assert_eq!(config.topics.packets, "code.packets.v1");
    }

    #[test]
    fn every_mistake_is_named() {
        let mistakes = with(&[
            "region=no spaces",
            "grpc.max_packets=0",
            "admission.bytes=1",
            "producer.compresion=zstd",
            "kafka.properties.acks=1",
        ])
        .unwrap_err();
        for key in ["region", "max_packets", "admission.bytes", "compresion", "acks"] {
            assert!(mistakes.contains(key), "{key} is missing in: {mistakes}");
        }
    }

    #[test]
    fn a_mirror_is_another_cluster() {
        let mirror = "mirror.kafka.bootstrap_servers=elsewhere:9092";
        let config = with(&[mirror, "ack.default=mirrored"]).unwrap();
        let (ack, mirror_config) = (config.ack.default, config.mirror.unwrap());
        assert_eq!((ack, mirror_config.max_wait), (Ack::Mirrored, HumanDuration::from_secs(5)));
        for (settings, key, allowed) in [
            (&["ack.default=mirrored"][..], "ack.default", "local"),
            (&["ack.default=both", mirror], "ack.default", "mirrored"),
            (&["mirror.max_wait=2s"], "mirror.kafka", "required"),
            (&["mirror.max_wait=2h", mirror], "mirror.max_wait", "at most 1m"),
            (
                &["mirror.kafka.bootstrap_servers=localhost:9092"],
                "mirror.kafka.bootstrap_servers",
                "the other region's",
            ),
        ] {
            let mistakes = with(settings).unwrap_err();
            assert!(mistakes.contains(key) && mistakes.contains(allowed), "{settings:?}: {mistakes}");
        }
    }

    #[test]
    fn a_connections_window_holds_a_streams() {
        let mistakes = with(&["grpc.connection_window=64KiB"]).unwrap_err();
        assert!(mistakes.contains("grpc.connection_window") && mistakes.contains("grpc.stream_window"), "{mistakes}");
    }
}
