//! `command line ─▶ config ─▶ telemetry (over tls) ─▶ lifecycle ─▶ kafka ─▶ admin ─▶ signal ─▶ drain ─▶ exit code`
//!
//! What the services share. [`service`] runs that line for a service, whose `main` is one call of [`Service::main`].

pub mod service;
pub mod config;
pub mod tls;
pub mod telemetry;
pub mod lifecycle;
pub mod kafka;
pub mod admin;
pub mod clock;
pub mod flaw;

pub use service::{Service, ServiceConfig};
pub use tokio_util::sync::CancellationToken;
