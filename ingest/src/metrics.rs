//! What operators see. Handles are fields of one static, so that no call site can misspell a name or a label.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use coderelay_runtime::telemetry::metrics::meter;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

use crate::admission::Admission;
use crate::mirror::Mirror;
use crate::unread::Unread;

/// The instruments.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::new(&meter()));

/// Instruments of this service. None is labelled with a `repo_id`: there are too many.
#[derive(Debug)]
pub struct Metrics {
    results: Counter<u64>,
    acknowledgement: Histogram<f64>,
    request_packets: Histogram<u64>,
    request_size: Histogram<u64>,
    /// Publish streams that are open.
    pub streams: Level,
    /// Client connections that are open.
    pub connections: Level,
    calls_failed: Counter<u64>,
    mirror_wait: Histogram<f64>,
    mirror_packets: Counter<u64>,
    mirror_up: Gauge<u64>,
}

/// A number of things that come and go.
#[derive(Debug, Clone)]
pub struct Level(UpDownCounter<i64>);

/// One of the things a [`Level`] counts, until dropped.
#[derive(Debug)]
pub struct Present(UpDownCounter<i64>);

impl Level {
    /// One more, until the guard is dropped.
    pub fn enter(&self) -> Present {
        self.0.add(1, &[]);
        Present(self.0.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl Metrics {
    fn new(meter: &Meter) -> Self {
        Self {
            results: meter
                .u64_counter("coderelay.ingest.results")
                .with_description("Packets answered, by reason: COMMITTED, or the error's ErrorInfo.reason")
                .build(),
            acknowledgement: meter
                .f64_histogram("coderelay.ingest.acknowledgement")
                .with_unit("s")
                .with_description("Time from a request's first byte to its answer")
                .build(),
            request_packets: meter
                .u64_histogram("coderelay.ingest.request.packets")
                .with_description("Packets in a request")
                .build(),
            request_size: meter
                .u64_histogram("coderelay.ingest.request.size")
                .with_unit("By")
                .with_description("Bytes of a request, decompressed")
                .build(),
            streams: Level(
                meter
                    .i64_up_down_counter("coderelay.ingest.open.streams")
                    .with_description("Publish streams that are open")
                    .build(),
            ),
            connections: Level(
                meter
                    .i64_up_down_counter("coderelay.ingest.open.connections")
                    .with_description("Client connections that are open")
                    .build(),
            ),
            calls_failed: meter
                .u64_counter("coderelay.ingest.calls.failed")
                .with_description("Calls ended with an error status, by reason")
                .build(),
            mirror_wait: meter
                .f64_histogram("coderelay.ingest.mirror.wait")
                .with_unit("s")
                .with_description(
                    "Time from this region's acknowledgement of a packet to the other's, or until it was given up",
                )
                .build(),
            mirror_packets: meter
                .u64_counter("coderelay.ingest.mirror.packets")
                .with_description("Packets that waited for the other region, by outcome: confirmed or unconfirmed")
                .build(),
            mirror_up: meter
                .u64_gauge("coderelay.ingest.mirror.up")
                .with_description("Whether the other region answers, so that packets can be confirmed there: 1 or 0")
                .build(),
        }
    }

    /// Shows how much of the budgets is spent.
    pub fn watch(admission: &Arc<Admission>, unread: &Arc<Unread>) {
        let meter = meter();
        let budget = Arc::clone(admission);
        meter
            .u64_observable_gauge("coderelay.ingest.in_flight.bytes")
            .with_description("Bytes of packets between the socket and Kafka's acknowledgement")
            .with_callback(move |observer| observer.observe(budget.bytes_in_use(), &[]))
            .build();
        let budget = Arc::clone(admission);
        meter
            .u64_observable_gauge("coderelay.ingest.in_flight.packets")
            .with_description("Packets between their decoding and their answer")
            .with_callback(move |observer| observer.observe(budget.packets_in_use(), &[]))
            .build();
        let unread = Arc::clone(unread);
        meter
            .u64_observable_gauge("coderelay.ingest.unread.results")
            .with_description("Results that have their place among those that clients have not read")
            .with_callback(move |observer| observer.observe(unread.in_use(), &[]))
            .build();
    }

    /// Shows how many packets wait for the other region.
    pub fn watch_mirror(mirror: &Arc<Mirror>) {
        let mirror = Arc::clone(mirror);
        meter()
            .u64_observable_gauge("coderelay.ingest.mirror.waiting")
            .with_description("Packets that this region has acknowledged and the other not yet")
            .with_callback(move |observer| observer.observe(mirror.waiting() as u64, &[]))
            .build();
    }

    /// A packet waited so long for the other region, and was confirmed or not.
    pub fn mirror_waited(&self, elapsed: Duration, confirmed: bool) {
        self.mirror_wait.record(elapsed.as_secs_f64(), &[]);
        let outcome = if confirmed { "confirmed" } else { "unconfirmed" };
        self.mirror_packets.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Whether the other region answers.
    pub fn mirror_answers(&self, answers: bool) {
        self.mirror_up.record(u64::from(answers), &[]);
    }

    /// A request was read.
    pub fn request_read(&self, packets: usize, size: usize) {
        self.request_packets.record(packets as u64, &[]);
        self.request_size.record(size as u64, &[]);
    }

    /// A request was answered after this time, its packets for these reasons.
    pub fn request_answered(&self, elapsed: Duration, reasons: impl Iterator<Item = &'static str>) {
        self.acknowledgement.record(elapsed.as_secs_f64(), &[]);
        for (reason, count) in tally(reasons) {
            self.results.add(count, &[KeyValue::new("reason", reason)]);
        }
    }

    /// A call ended with an error status.
    pub fn call_failed(&self, reason: &'static str) {
        self.calls_failed.add(1, &[KeyValue::new("reason", reason)]);
    }
}

/// Counts each reason: one update per request and reason instead of one per packet.
fn tally(reasons: impl Iterator<Item = &'static str>) -> Vec<(&'static str, u64)> {
    let mut counts: Vec<(&'static str, u64)> = Vec::new();
    for reason in reasons {
        match counts.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason, 1)),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_once_per_request() {
        let reasons = ["COMMITTED", "CONTENT_BOMB", "COMMITTED"];
        assert_eq!(tally(reasons.into_iter()), [("COMMITTED", 2), ("CONTENT_BOMB", 1)]);
    }
}
