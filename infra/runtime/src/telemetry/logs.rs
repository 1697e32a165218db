//! Log lines: JSON for machines, with the ids of the span they belong to, and a readable form for people.

use std::fmt;
use std::io::IsTerminal;

use opentelemetry::trace::TraceContextExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// Shape of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `human` on a terminal, else `json`.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Lines for people, coloured on a terminal.
    Human,
}

pub(super) fn filter(directives: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(directives)
}

pub(super) fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let human = match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    if human {
        // On a terminal unless NO_COLOR is set (<https://no-color.org>).
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        layer.with_ansi(colour).boxed()
    } else {
        let inner = format::format().json().flatten_event(true).with_span_list(false);
        layer.fmt_fields(JsonFields::new()).event_format(WithTraceIds { inner }).boxed()
    }
}

/// tracing's JSON with `trace_id` and `span_id` added, so that a log line leads to its trace.
struct WithTraceIds {
    inner: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for WithTraceIds
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::with_capacity(512);
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        let context = opentelemetry::Context::current();
        let span = context.span().span_context().clone();
        match line.trim_end().strip_suffix('}').filter(|_| span.is_valid()) {
            Some(open) => {
                writeln!(out, "{open},\"trace_id\":\"{}\",\"span_id\":\"{}\"}}", span.trace_id(), span.span_id())
            }
            None => out.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::Resource;
    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::{TelemetryConfig, propagation, traces};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What a service would have logged.
    fn logged(format: LogFormat, directives: &str, work: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let provider = traces::provider(&TelemetryConfig::default(), Resource::builder().build()).unwrap();
        let logs = layer(format, move || writer.clone()).with_filter(filter(directives).unwrap());
        let subscriber = tracing_subscriber::registry().with(traces::layer(&provider)).with(logs);
        tracing::subscriber::with_default(subscriber, work);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_names_the_span_it_belongs_to() {
        let mut traceparent = String::new();
        let text = logged(LogFormat::Json, "info", || {
            let span = tracing::info_span!("publish", call = 7);
            traceparent = propagation::traceparent(&span).unwrap();
            span.in_scope(|| tracing::info!(records = 3, "a \"quoted\" message}}"));
            tracing::info!("outside");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["message"], "a \"quoted\" message}");
        assert_eq!(
            (&lines[0]["level"], &lines[0]["records"], &lines[0]["span"]["call"]),
            (&"INFO".into(), &3.into(), &7.into())
        );
        let ids = format!("00-{}-{}-00", lines[0]["trace_id"].as_str().unwrap(), lines[0]["span_id"].as_str().unwrap());
        assert_eq!(ids, traceparent);
        assert_eq!(lines[1].get("trace_id"), None);
    }

    #[test]
    fn a_quiet_log_does_not_cut_traces() {
        let text = logged(LogFormat::Json, "error", || {
            let span = tracing::info_span!("publish");
            assert!(propagation::traceparent(&span).is_some());
            span.in_scope(|| tracing::info!("unseen"));
            span.in_scope(|| tracing::error!("seen"));
        });
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("\"trace_id\""), "{text}");
    }

    #[test]
    fn the_human_form_is_no_json() {
        let text = logged(LogFormat::Human, "info", || tracing::info!(records = 3, "stored"));
        assert!(text.contains("stored") && text.contains("records=3") && !text.starts_with('{'), "{text}");
    }
}
