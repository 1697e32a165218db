//! What both services stand on.
//!
//! ```text
//! config ─▶ tls ─▶ telemetry ─▶ lifecycle (signals, drain) ─▶ kafka (client settings, figures) ─▶ admin (/metrics, /livez, /readyz) ; service = all of it in one call
//! ```

pub mod admin;
pub mod config;
pub mod kafka;
pub mod lifecycle;
pub mod service;
pub mod telemetry;
pub mod tls;

pub use service::{Service, ServiceConfig};
pub use tokio_util::sync::CancellationToken;
