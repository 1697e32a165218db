//! Metrics: OpenTelemetry instruments, exposed in the Prometheus text format.
//!
//! An instrument `coderelay.ack.duration` with unit `s` is exposed as `coderelay_ack_duration_seconds`, one with unit `By` ends in
//! `_bytes`, a counter in `_total`. Histograms need no boundaries at the call site: their unit chooses them ([`SECONDS`], [`BYTES`],
//! [`COUNTS`]). Labels are bounded sets; never a repository's name.

use std::sync::OnceLock;

use opentelemetry::metrics::Meter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

/// Boundaries for durations in seconds, from half a millisecond to a minute, closest around the 20 ms a commit should take.
pub const SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Boundaries for sizes in bytes, from 256 B to 64 MiB in powers of four.
pub const BYTES: [f64; 10] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];
/// Boundaries for counts, such as the records of a batch.
pub const COUNTS: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0];

/// Name of the meter all instruments belong to.
const METER: &str = "coderelay";

static METRICS: OnceLock<Metrics> = OnceLock::new();

#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// Kept so that its instruments stay alive.
    _provider: SdkMeterProvider,
}

/// The meter of the process. The first use sets the metrics up, so instruments may be made before [`super::init`].
pub fn meter() -> Meter {
    install(None);
    opentelemetry::global::meter(METER)
}

/// All metrics in the Prometheus text format, version 0.0.4.
///
/// # Errors
/// When a metric cannot be encoded.
pub fn exposition() -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&install(None).registry.gather())
}

pub(super) fn install(resource: Option<Resource>) -> &'static Metrics {
    METRICS.get_or_init(|| Metrics::new(resource))
}

impl Metrics {
    fn new(resource: Option<Resource>) -> Self {
        let registry = Registry::new();
        let mut provider = SdkMeterProvider::builder().with_view(boundaries);
        if let Some(resource) = resource {
            provider = provider.with_resource(resource);
        }
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        match exporter.build() {
            Ok(exporter) => provider = provider.with_reader(exporter),
            Err(error) => tracing::error!(%error, "metrics are not exposed"),
        }
        if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
            tracing::error!(%error, "metrics of the process itself are not exposed");
        }
        let provider = provider.build();
        opentelemetry::global::set_meter_provider(provider.clone());
        Self { registry, _provider: provider }
    }
}

/// The boundaries of a histogram by its unit. The exporter drops exponential histograms, hence explicit ones.
fn boundaries(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let boundaries = match instrument.unit() {
        "s" => SECONDS.to_vec(),
        "By" => BYTES.to_vec(),
        _ => COUNTS.to_vec(),
    };
    Stream::builder()
        .with_aggregation(Aggregation::ExplicitBucketHistogram { boundaries, record_min_max: false })
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;

    #[test]
    fn exposed_names_are_those_of_the_contract() {
        let meter = meter();
        meter.u64_gauge("queue_depth").build().record(3, &[KeyValue::new("queue", "code.packets.v1")]);
        meter.f64_histogram("process.duration").with_unit("s").build().record(0.3, &[]);
        meter.u64_counter("coderelay.test.packets").build().add(2, &[KeyValue::new("reason", "accepted")]);
        meter.u64_histogram("coderelay.test.batch").with_unit("By").build().record(5000, &[]);
        meter.u64_histogram("coderelay.test.batch_records").build().record(7, &[]);
        meter.f64_gauge("coderelay.test.in_flight").with_unit("By").build().record(9.0, &[]);
        let text = exposition().unwrap();
        for line in [
            "# TYPE queue_depth gauge",
            r#"queue_depth{queue="code.packets.v1"} 3"#,
            "# TYPE process_duration_seconds histogram",
            r#"process_duration_seconds_bucket{le="0.25"} 0"#,
            r#"process_duration_seconds_bucket{le="0.5"} 1"#,
            r#"coderelay_test_packets_total{reason="accepted"} 2"#,
            r#"coderelay_test_batch_bytes_bucket{le="4096"} 0"#,
            r#"coderelay_test_batch_bytes_bucket{le="16384"} 1"#,
            r#"coderelay_test_batch_records_bucket{le="5"} 0"#,
            r#"coderelay_test_batch_records_bucket{le="10"} 1"#,
            "coderelay_test_in_flight_bytes 9",
            "process_resident_memory_bytes ",
            "process_open_fds ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("otel_scope"), "scope labels are noise here");
    }

    #[test]
    fn process_duration_can_be_judged_at_half_a_second() {
        assert!(SECONDS.contains(&0.5));
    }
}
