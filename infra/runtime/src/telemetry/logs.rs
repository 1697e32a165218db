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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "garde's signature")]
pub(super) fn is_filter(directives: &str, (): &()) -> garde::Result {
    filter(directives).map(drop).map_err(|error| garde::Error::new(format!("must be a filter as in RUST_LOG: {error}")))
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
        layer.with_ansi(terminal).boxed()
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
