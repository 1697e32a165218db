//! Spans: always numbered and propagated, exported when an endpoint is configured.

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::{TelemetryConfig, TelemetryError};

/// Name of the tracer: the instrumentation scope of all spans.
const TRACER: &str = "coderelay";

/// Without an endpoint spans still get ids, for logs and for `traceparent`, but none is recorded unless its caller's was.
pub(super) fn provider(config: &TelemetryConfig, resource: Resource) -> Result<SdkTracerProvider, TelemetryError> {
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(builder.with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff))).build());
    };
    let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    if endpoint.starts_with("https:") {
        let mut tls = ClientTlsConfig::new();
        tls = match &config.otlp_ca {
            None => tls.with_native_roots(),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|source| TelemetryError::CertificateAuthority {
                    path: path.display().to_string(),
                    source,
                })?;
                tls.ca_certificate(Certificate::from_pem(pem))
            }
        };
        exporter = exporter.with_tls_config(tls);
    }
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio)));
    Ok(builder.with_sampler(sampler).with_batch_exporter(exporter.build()?).build())
}

/// Spans of the transport that carries the spans: exporting them would make new ones.
const TRANSPORT: [&str; 6] = ["h2", "hyper", "hyper_util", "opentelemetry", "tonic", "tower"];

/// Spans of level info and above, whatever the log filter says: a quiet log must not cut traces.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S> {
    let transport = TRANSPORT.map(|target| (target, LevelFilter::OFF));
    let spans = Targets::new().with_default(LevelFilter::INFO).with_targets(transport);
    tracing_opentelemetry::layer().with_tracer(provider.tracer(TRACER)).with_filter(spans)
}
