//! The `drain` measurement: how fast a processor stores and commits a backlog that is already there.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::task::block_in_place;

use crate::backlog::Backlog;
use crate::resources::{Meter, Usage, Watched};
use crate::scrape::Page;

/// The processor's default consumer group.
pub const GROUP: &str = "coderelay-processor";
/// The processor's histogram of the time a transaction's commit takes, in seconds.
pub const COMMIT_METRIC: &str = "coderelay_processor_commit_duration_seconds";
/// The processor's gauge of remembered ids.
const IDS_METRIC: &str = "coderelay_dedup_entries";

/// How to watch a backlog shrink.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Time between two looks at the committed offsets.
    pub interval: Duration,
    /// How long the group may commit nothing before it counts as stopped.
    pub patience: Duration,
    /// The processor's `/metrics` page.
    pub metrics_url: String,
    /// Histogram of a transaction's commit time there, in seconds.
    pub commit_metric: String,
    /// Processes to report on; they must run already.
    pub processes: Vec<Watched>,
}

/// What draining one backlog came to.
#[derive(Clone, Debug, Serialize)]
pub struct DrainReport {
    /// Records waiting at the beginning.
    pub backlog: u64,
    /// Records still waiting at the end.
    pub remaining: u64,
    /// Records committed in the measured span. It begins at the first commit seen, so that neither a starting processor
    /// nor the batch it worked on before is counted.
    pub records: u64,
    /// Length of that span.
    pub seconds: f64,
    /// Records stored and committed per second.
    pub per_second: f64,
    /// Median time of a transaction's commit, in milliseconds, interpolated from the histogram's buckets.
    pub commit_p50_ms: Option<f64>,
    /// The same for the slowest hundredth.
    pub commit_p99_ms: Option<f64>,
    /// Ids that the processor remembers at the end, to remove duplicates: most of its memory.
    pub ids_remembered: Option<f64>,
    /// CPU and memory of the watched processes and of this one, from the call on.
    pub processes: Vec<Usage>,
}

impl DrainReport {
    /// Whether nothing is left.
    pub fn is_complete(&self) -> bool {
        self.remaining == 0
    }
}

/// Watches until the backlog is gone or the group stops committing. Needs a multi-threaded Tokio runtime.
///
/// # Errors
/// When the broker or the metrics page does not answer, or a watched process cannot be read.
pub async fn measure(backlog: &Backlog, watch: &Watch) -> Result<DrainReport> {
    let meter = Meter::start(&watch.processes)?;
    // A processor that is only starting has no page yet.
    let earlier = Page::fetch(&watch.metrics_url).await.unwrap_or_default();
    let from = block_in_place(|| backlog.committed())?;
    let progress = block_in_place(|| follow(backlog, watch, from))?;
    let processes = meter.stop(progress.last.1 - from)?;
    let later = Page::fetch(&watch.metrics_url).await?;
    let commits = later.histogram(&watch.commit_metric).since(&earlier.histogram(&watch.commit_metric));

    let Progress { first, last } = progress;
    let (records, seconds) = (last.1 - first.1, (last.0 - first.0).as_secs_f64());
    let milliseconds = |seconds: f64| seconds * 1e3;
    Ok(DrainReport {
        backlog: backlog.end().saturating_sub(from),
        remaining: backlog.end().saturating_sub(last.1),
        records,
        seconds,
        per_second: if seconds > 0.0 { records as f64 / seconds } else { 0.0 },
        commit_p50_ms: commits.quantile(0.5).map(milliseconds),
        commit_p99_ms: commits.quantile(0.99).map(milliseconds),
        ids_remembered: later.value(IDS_METRIC),
        processes,
    })
}

/// The first and the last commit seen: when, and up to which sum of offsets.
struct Progress {
    first: (Instant, u64),
    last: (Instant, u64),
}

fn follow(backlog: &Backlog, watch: &Watch, from: u64) -> Result<Progress> {
    let mut first = None;
    let mut last = (Instant::now(), from);
    while last.1 < backlog.end() && last.0.elapsed() < watch.patience {
        thread::sleep(watch.interval);
        let committed = backlog.committed()?;
        if committed > last.1 {
            last = (Instant::now(), committed);
            first.get_or_insert(last);
        }
    }
    Ok(Progress { first: first.unwrap_or(last), last })
}
