//! Where a request comes from and what it is called: `traceparent` and `x-request-id`.

use http::{HeaderMap, HeaderValue};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, propagation::Extractor};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::wire::Call;

/// Metadata that names a call. Echoed, and generated where the client sent none.
pub const REQUEST_ID: &str = "x-request-id";

/// Longer request ids are replaced: they go into every log line.
const REQUEST_ID_MAX: usize = 128;

/// The trace and the name of one call.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Printable ASCII.
    pub request_id: HeaderValue,
    call: Call,
    /// The client's `traceparent` as it was sent, if it is one.
    traceparent: Option<String>,
    tracestate: Option<String>,
    parent: Context,
}

impl Origin {
    /// Reads the metadata of a call.
    pub fn of(call: Call, headers: &HeaderMap) -> Self {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let valid = parent.span().span_context().is_valid();
        let sent = |name| Headers(headers).get(name).filter(|_| valid).map(str::to_owned);
        let (traceparent, tracestate) = (sent("traceparent"), sent("tracestate"));
        Self { request_id: request_id(headers), call, traceparent, tracestate, parent }
    }

    /// A span for one request of the call, a child of the client's. None where nothing is exported: it would cost a tenth of
    /// what a small request costs in all, and nobody would see it.
    pub fn span(&self, packets: usize, exporting: bool) -> Span {
        if !exporting {
            return Span::none();
        }
        let request_id = self.request_id.to_str().unwrap_or_default();
        let span = tracing::info_span!(
            "ingest request",
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = "coderelay.v1.Ingest",
            rpc.method = self.call.name(),
            messaging.system = "kafka",
            messaging.operation.name = "send",
            messaging.batch.message_count = packets,
            request_id,
        );
        if self.traceparent.is_some() {
            // Fails only where no traces are exported, and then there is no child to attach.
            let _no_exporter = span.set_parent(self.parent.clone());
        }
        span
    }

    /// The `traceparent` for the records of a request: the span's if it will be exported, else the client's untouched, else a new
    /// unsampled one, so that records of one request can be told by it.
    pub fn traceparent(&self, span: &Span) -> String {
        if !span.is_none() {
            let context = span.context();
            let own = context.span().span_context().clone();
            if own.is_valid() && own.is_sampled() {
                return format!("00-{}-{}-{:02x}", own.trace_id(), own.span_id(), own.trace_flags().to_u8());
            }
        }
        match &self.traceparent {
            Some(client) => client.clone(),
            // Zero is no valid id; both numbers have their lowest bit set.
            None => format!("00-{:032x}-{:016x}-00", rand::random::<u128>() | 1, rand::random::<u64>() | 1),
        }
    }

    /// The client's `tracestate`, untouched. It is meaningless without its `traceparent`.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(sent) if !sent.is_empty() && sent.len() <= REQUEST_ID_MAX && sent.to_str().is_ok() => sent.clone(),
        _ => {
            let generated = format!("{:032x}", rand::random::<u128>());
            HeaderValue::try_from(generated).unwrap_or_else(|_| unreachable!("hexadecimal digits are printable"))
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn origin(name: &'static str, value: &str) -> Origin {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::try_from(value).unwrap());
        Origin::of(Call::Publish, &headers)
    }

    #[test]
    fn a_request_id_is_kept_or_made() {
        assert_eq!(origin(REQUEST_ID, "build-42").request_id, "build-42");
        assert_eq!(origin(REQUEST_ID, "").request_id.len(), 32);
        assert_eq!(origin(REQUEST_ID, &"x".repeat(1000)).request_id.len(), 32);
        assert_ne!(origin("other", "").request_id, origin("other", "").request_id);
    }

    #[test]
    fn the_clients_traceparent_is_passed_on_untouched_when_nothing_is_exported() {
        let origin = origin("traceparent", CLIENT);
        assert_eq!(origin.traceparent(&origin.span(1, false)), CLIENT);
    }

    #[test]
    fn an_exported_span_takes_the_clients_place() {
        use opentelemetry::trace::TracerProvider;
        use tracing_subscriber::layer::SubscriberExt;

        let tracer = opentelemetry_sdk::trace::SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
        tracing::subscriber::with_default(subscriber, || {
            let origin = origin("traceparent", CLIENT);
            let own = origin.traceparent(&origin.span(1, true));
            assert_eq!(own[..36], CLIENT[..36], "the same trace");
            assert_ne!(own[36..52], CLIENT[36..52], "another span");
            assert!(own.ends_with("-01"));
        });
    }

    #[test]
    fn without_one_or_with_nonsense_an_unsampled_one_is_made() {
        for sent in ["", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let origin = origin("traceparent", sent);
            let made = origin.traceparent(&origin.span(1, false));
            assert!(made.len() == 55 && made.starts_with("00-") && made.ends_with("-00"), "{made}");
        }
    }
}
