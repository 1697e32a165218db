//! Logs, traces and metrics of a service.

mod logs;
pub mod metrics;
pub mod propagation;
mod traces;

use std::path::PathBuf;

use garde::Validate;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use logs::LogFormat;

/// Logs and traces. Metrics are always on; see [`metrics`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct TelemetryConfig {
    /// Shape of the log on standard error: `human` on a terminal and `json` elsewhere when `auto`.
    pub log_format: LogFormat,
    /// Which logs to write, as in `RUST_LOG`: `info`, or `info,librdkafka=debug,ingest=trace`.
    #[schemars(extend("format" = "log-filter"))]
    pub log_filter: String,
    /// OTLP/gRPC collector to send spans to, as `http://collector:4317` or `https://…`. Unset: spans are not exported, but
    /// the W3C `traceparent` of a request is still passed on.
    #[schemars(extend("format" = "http-url"))]
    pub otlp_endpoint: Option<String>,
    /// PEM file with the certificate authorities of an `https` collector. Unset: those of the system.
    #[schemars(extend("format" = "pem-certificates"))]
    pub otlp_ca: Option<PathBuf>,
    /// Share of the traces begun here that are exported, 0 to 1. A caller's own decision in `traceparent` is followed instead.
    #[garde(range(min = 0.0, max = 1.0))]
    pub trace_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Auto,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            otlp_ca: None,
            trace_ratio: 0.01,
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter cannot be read.
    #[error("telemetry.log_filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The span exporter cannot be built.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The certificate authorities cannot be read.
    #[error("telemetry.otlp_ca {path}: {source}")]
    CertificateAuthority {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else in this process has set a global subscriber already.
    #[error("telemetry is set up already: {0}")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// Telemetry in effect; ends with [`Telemetry::shutdown`].
#[derive(Debug)]
pub struct Telemetry {
    traces: SdkTracerProvider,
}

/// Sets up logs, traces, metrics and the propagator for the whole process. Once per process, inside a tokio runtime.
///
/// # Errors
/// [`TelemetryError`]; the service cannot begin then.
pub fn init(
    config: &TelemetryConfig,
    service: &'static str,
    version: &'static str,
) -> Result<Telemetry, TelemetryError> {
    crate::tls::install_provider();
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(opentelemetry::KeyValue::new("service.version", version))
        .build();
    metrics::install(Some(resource.clone()));
    let traces = traces::provider(config, resource)?;
    let filter = logs::filter(&config.log_filter)?;
    // Before there is a log: OpenTelemetry would announce itself in it.
    propagation::install();
    opentelemetry::global::set_tracer_provider(traces.clone());
    tracing_subscriber::registry()
        .with(traces::layer(&traces))
        .with(logs::layer(config.log_format, std::io::stderr).with_filter(filter))
        .try_init()?;
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends the spans that still wait, for at most the exporter's own timeout.
    pub async fn shutdown(self) {
        // It blocks, and the exporter needs the runtime's threads meanwhile.
        match tokio::task::spawn_blocking(move || self.traces.shutdown()).await {
            Ok(Err(error)) => tracing::warn!(%error, "spans were left behind"),
            Err(error) => tracing::warn!(%error, "spans were left behind"),
            Ok(Ok(())) => {}
        }
    }
}
