//! W3C Trace Context (`traceparent`) across processes: HTTP/2 metadata and Kafka headers.
//!
//! A request's span takes the sender's context as its parent; a batch's span has a *link* to the context of each of its records
//! (OpenTelemetry semantic conventions for messaging).

use std::collections::HashMap;

use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry::{Context, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header.
const TRACEPARENT: &str = "traceparent";

/// Makes W3C Trace Context the propagator of the process. Done by [`super::init`].
pub fn install() {
    global::set_text_map_propagator(TraceContextPropagator::new());
}

/// The sender's span, from the `traceparent` it sent; `None` when that is not one.
pub fn remote(traceparent: &str) -> Option<SpanContext> {
    use opentelemetry::propagation::TextMapPropagator;
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let remote = context.span().span_context().clone();
    remote.is_valid().then_some(remote)
}

/// The `traceparent` of a span, to be sent on; `None` when spans have no ids because telemetry is not set up.
pub fn traceparent(span: &Span) -> Option<String> {
    use opentelemetry::propagation::TextMapPropagator;
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes the sender's span the parent of this one, which must not have been entered yet. Without a valid `traceparent` the span begins
/// a trace of its own.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    if let Some(remote) = traceparent.and_then(remote) {
        // Fails only where spans are not traced, and then there is nothing to continue.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
}

/// Whether anybody will see the span and its links: not where nothing is exported, nor outside the sample.
pub fn is_traced(span: &Span) -> bool {
    span.context().span().span_context().is_sampled()
}

/// Links this span to the sender's.
pub fn link(span: &Span, traceparent: &str) {
    if let Some(remote) = remote(traceparent) {
        span.add_link(remote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{TelemetryConfig, traces};
    use opentelemetry_sdk::Resource;
    use tracing_subscriber::layer::SubscriberExt;

    const SENDER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_senders_trace_goes_on_also_when_nothing_is_exported() {
        let provider = traces::provider(&TelemetryConfig::default(), Resource::builder().build()).unwrap();
        let subscriber = tracing_subscriber::registry().with(traces::layer(&provider));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("publish");
            continue_from(&span, Some(SENDER));
            let sent_on = traceparent(&span).unwrap();
            assert_eq!((&sent_on[..36], &sent_on[52..]), (&SENDER[..36], "-01"), "same trace, still sampled");
            assert_ne!(sent_on[36..52], SENDER[36..52], "a span of its own");

            let own = traceparent(&tracing::info_span!("publish")).unwrap();
            assert!(own.ends_with("-00"), "a trace begun here is not sampled without an exporter: {own}");
        });
    }

    #[test]
    fn what_is_no_traceparent_is_ignored() {
        assert!(remote(SENDER).is_some());
        for text in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "hello"] {
            assert!(remote(text).is_none(), "{text}");
        }
    }
}
