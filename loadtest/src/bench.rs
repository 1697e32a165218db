//! The whole measurement: one stack, its limits, every scenario of the table, the report, the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coderelay_runtime::config::Assignment;
use coderelay_schemas::topics::PARTITIONS;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::devstack::Devstack;
use crate::limits::{self, Span};
use crate::memory;
use crate::progress::Progress;
use crate::results::write_summary;
use crate::run::Run;
use crate::scenario;
use crate::summary::{Summary, Verdict};
use crate::targets::{self, Row};

/// The scenarios in their order, and what makes each shorter. `drain` comes before those whose rate is held against it, and those that
/// find a maximum before those that time what comes at a rate: a JVM that still compiles would be timed with them.
const SCENARIOS: [(&str, &[&str]); 10] = [
    ("drain", &["load.packets=200000"]),
    ("duplicates", &["load.packets=120000", "load.warm_up_packets=20000", "repeats.after=20000"]),
    ("hot-key", &["load.packets=100000"]),
    ("batched", &["load.packets=300000"]),
    ("one-per-request", &["load.packets=100000"]),
    ("large", &["load.packets=300"]),
    ("steady", &["load.duration=15s", "load.warm_up=10s"]),
    ("ramp", &["ramp.hold=3s", "ramp.step=5000"]),
    ("burst", &["load.duration=40s", "burst.duration=2s"]),
    ("cold-start", &[]),
];
/// The scenario that is not one: the processor's memory alone.
const MEMORY: &str = "dedup-memory";
/// Ids it is measured with: the default of `dedup.capacity`.
const IDS: u64 = 10_000_000;
/// Warm the JVMs, with large transactions and with small ones; their figures are dropped.
const WARM_UPS: [(&str, &[&str]); 2] = [
    ("drain", &["load.packets=400000", "load.warm_up_packets=0", "finish.replay=false", "finish.audit=false"]),
    ("steady", &["load.duration=20s", "load.warm_up=1s", "finish.audit=false"]),
];

/// Measure everything that the documentation publishes, on a stack of its own.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Folder for the results: one for each scenario, and report.html over all.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// A fifth of the packets: to try it out, not to publish.
    #[arg(long)]
    quick: bool,
    /// Only these scenarios (repeatable). Limits are always measured.
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<String>,
    /// Exit with 99 when a target is missed.
    #[arg(long)]
    pub enforce: bool,
    /// Folder of the programs `ingest` and `processor`. Default: where loadtest is.
    #[arg(long)]
    bin: Option<PathBuf>,
}

/// What the measurement found.
#[derive(Debug)]
pub struct Bench {
    /// The table.
    pub rows: Vec<Row>,
    /// Scenarios that failed or whose audit is not clean, and how.
    pub broken: Vec<String>,
    /// Whether it was ended early.
    pub interrupted: bool,
}

impl BenchArgs {
    /// Does it. Needs a multi-threaded Tokio runtime.
    ///
    /// # Errors
    /// When the stack does not start. What fails after that is told in the result.
    pub async fn run(&self, stop: CancellationToken) -> Result<Bench> {
        let progress = Progress::new("bench");
        let (mut limits, mut summaries, mut broken) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        if self.wants(MEMORY) {
            progress.step("filling the processor's memory of ids");
            let summary = spawn_blocking(|| memory::measure(IDS)).await??;
            write_summary(&self.out.join(MEMORY), &summary)?;
            summaries.insert(MEMORY.to_owned(), summary);
        }
        progress.step("starting Kafka and Cassandra");
        let devstack = Devstack::start(self.bin.as_deref()).await?;
        for (name, set) in WARM_UPS {
            let warm_up = self.scenario(&devstack, name, set, &BTreeMap::new(), "warm-up", &stop).await;
            warm_up.context("the warm-up failed")?;
            fs::remove_dir_all(self.out.join("warm-up")).context("cannot remove the warm-up's folder")?;
        }
        match self.limits(&devstack, &progress).await {
            Ok(summary) => {
                limits.extend(summary.rates.iter().map(|rate| (rate.name.clone(), rate.per_second)));
                summaries.insert("limits".to_owned(), summary);
            }
            Err(error) => broken.push(format!("limits: {error:#}")),
        }
        drop(progress);
        for (name, shorter) in SCENARIOS {
            if stop.is_cancelled() || !self.wants(name) {
                continue;
            }
            let set = if self.quick { shorter } else { &[] };
            match self.scenario(&devstack, name, set, &limits, name, &stop).await {
                Ok(summary) => {
                    let rate = summary.rates.iter().find(|rate| rate.name == "drained");
                    if let Some(rate) = rate.filter(|_| name == "drain") {
                        limits.insert("drain".to_owned(), rate.per_second);
                    }
                    broken.extend(complaint(name, &summary));
                    summaries.insert(name.to_owned(), summary);
                }
                Err(error) => broken.push(format!("{name}: {error:#}")),
            }
        }
        devstack.stop().await?;
        crate::report::write(&self.out)?;
        Ok(Bench { rows: targets::rows(&summaries), broken, interrupted: stop.is_cancelled() })
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    async fn scenario(
        &self,
        devstack: &Devstack,
        name: &str,
        set: &[&str],
        limits: &BTreeMap<String, f64>,
        folder: &str,
        stop: &CancellationToken,
    ) -> Result<Summary> {
        let out = self.out.join(folder);
        let set: Vec<Assignment> = set.iter().filter_map(|set| set.parse().ok()).collect();
        let (_, text) = scenario::text(name)?;
        let scenario = scenario::load(&keep(&out, &text)?, &set)?;
        let pipeline = devstack.pipeline(&scenario).await?;
        let run = Run { name: folder, scenario: &scenario, pipeline: &pipeline, limits, out: &out, stop: stop.clone() };
        let summary = run.execute().await;
        let notes = pipeline.close().await;
        for note in &notes {
            eprintln!("{folder}: {note}");
        }
        summary
    }

    async fn limits(&self, devstack: &Devstack, progress: &Progress) -> Result<Summary> {
        let measured = Duration::from_secs(if self.quick { 2 } else { 10 });
        let target = limits::Target {
            bootstrap_servers: devstack.bootstrap_servers(),
            cql_contact: devstack.cql_contact(),
            partitions: PARTITIONS,
            replicas: 1,
            span: Span { warm_up: Duration::from_secs(1), measured },
        };
        let summary = limits::measure(&target, |what| progress.step(what)).await?;
        write_summary(&self.out.join("limits"), &summary)?;
        Ok(summary)
    }
}

/// Leaves a copy of the scenario's text in the run's folder.
///
/// # Errors
/// When it cannot be written.
pub fn keep(out: &Path, text: &str) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join("scenario.toml");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What makes a run worthless, however fast it was.
fn complaint(name: &str, summary: &Summary) -> Option<String> {
    match &summary.audit {
        Some(audit) if audit.is_clean() => {}
        Some(audit) => {
            let finding = audit
                .findings
                .first()
                .map(|finding| format!("{} {}: {}", finding.kind, finding.packet_id, finding.detail));
            return Some(format!("{name}: the audit is not clean; {}", finding.unwrap_or_default()));
        }
        None if summary.verdict != Verdict::Interrupted => return Some(format!("{name}: not audited")),
        None => {}
    }
    (summary.verdict == Verdict::Invalid).then(|| format!("{name}: {}", summary.notes.join(" ")))
}
