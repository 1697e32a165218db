//! The span of a batch, linked to the spans of those who sent its records.

use coderelay_runtime::telemetry::propagation;
use coderelay_schemas::headers;
use tracing::Span;

use crate::record::Record;

/// Links of one span at most; each costs parsing, and no viewer shows thousands.
const LINKS_MAX: usize = 64;
/// How a `traceparent` ends whose sender records its trace (W3C Trace Context, trace-flags).
const SAMPLED: &[u8] = b"-01";

/// A span for the processing of `records`, named as OpenTelemetry's conventions for messaging want it. Senders whose traces are not
/// recorded are not linked: nothing would be found at the other end.
pub(crate) fn span(records: &[Record]) -> Span {
    let span = tracing::info_span!(
        "process",
        messaging.system = "kafka",
        messaging.operation.name = "process",
        messaging.batch.message_count = records.len()
    );
    if !propagation::is_traced(&span) {
        return span;
    }
    let sampled = records
        .iter()
        .filter(|record| record.headers.last(headers::TRACEPARENT).is_some_and(|value| value.ends_with(SAMPLED)))
        .filter_map(|record| record.headers.last_str(headers::TRACEPARENT));
    // The records of one request stand together and share its span.
    let mut last = None;
    for traceparent in sampled.filter(|traceparent| last.replace(*traceparent) != Some(*traceparent)).take(LINKS_MAX) {
        propagation::link(&span, traceparent);
    }
    span
}
