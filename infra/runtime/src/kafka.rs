//! The Kafka client's settings and figures, the same for producer and consumer.

pub mod config;
pub mod context;
pub mod headers;
pub mod statistics;

pub use config::{
    KafkaConfig, Protocol, SaslConfig, SaslMechanism, SecurityConfig, TlsConfig, client_config, reserved,
};
pub use context::{Context, log};
pub use headers::headers;
pub use statistics::Statistics;
