//! The published measurement, whole: a stack of its own, ingest and processor, warm-up, runs, one table.
//!
//! Client, services, broker and store share the machine's cores. Each run measures ingest while the processor is stopped,
//! then starts the processor on the backlog and measures how it drains. Runs share nothing but the warm JVMs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coderelay_devstack::{CommitLog, Launch, Probe, Process, Stack, free_port};
use coderelay_schemas::cql;
use coderelay_schemas::topics::TopicNames;
use serde::Serialize;

use crate::backlog::Backlog;
use crate::cli::{Shape, clock_seed};
use crate::corpus::Corpus;
use crate::drain::{self, DrainReport, Watch};
use crate::ingest::{self, IngestReport};
use crate::machine::Origin;
use crate::resources::{Usage, Watched};

/// How long a service may take to leave.
const GRACE: Duration = Duration::from_secs(60);

/// Arguments of the measurement.
#[derive(Clone, Debug, Args)]
pub struct Figures {
    #[command(flatten)]
    shape: Shape,
    /// Packets of each run.
    #[arg(long, default_value_t = 500_000)]
    packets: u64,
    /// Runs; the table shows their median and range.
    #[arg(long, default_value_t = 3)]
    runs: u64,
    /// Packets relayed before, which are not measured: they warm the JVMs.
    #[arg(long, default_value_t = 500_000)]
    warm_up: u64,
    /// Partitions of the topics.
    #[arg(long, default_value_t = 12)]
    partitions: i32,
    /// Settings of ingest beyond its defaults (repeatable).
    #[arg(long, value_name = "KEY=VALUE")]
    ingest_set: Vec<String>,
    /// Settings of the processor beyond its defaults (repeatable).
    #[arg(long, value_name = "KEY=VALUE")]
    processor_set: Vec<String>,
    /// Folder of the binaries `ingest` and `processor`. Default: the one loadtest is in.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Exit with 1 when a target is missed.
    #[arg(long)]
    pub(crate) enforce: bool,
}

/// What a run of the measurement found.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Ingest, with the processor stopped.
    pub ingest: IngestReport,
    /// The processor, on the backlog that ingest left.
    pub drain: DrainReport,
}

/// The published figures and where they come from.
#[derive(Clone, Debug, Serialize)]
pub struct FiguresReport {
    /// Machine, date, commit and command.
    pub origin: Origin,
    /// The load's shape.
    pub(crate) shape: Shape,
    /// One line each.
    pub figures: Vec<Figure>,
    /// Everything measured, run by run.
    pub runs: Vec<Run>,
}

/// One published figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be.
    pub target: Option<Target>,
    /// What each run found.
    pub values: Vec<f64>,
}

/// A bound a figure should keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This much or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Figure {
    /// The middle value of the runs, or between the middle two; not a number where a run found none.
    pub fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        match values.as_slice() {
            [] => f64::NAN,
            sorted => f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]),
        }
    }

    /// The smallest and the largest value of the runs.
    pub fn range(&self) -> (f64, f64) {
        self.values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
    }

    /// Whether the median keeps the target; `None` without one.
    pub fn meets_target(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtLeast(bound) => self.median() >= bound,
            Target::Below(bound) => self.median() < bound,
        })
    }
}

impl FiguresReport {
    /// Whether every packet was acknowledged and every backlog drained.
    pub fn is_complete(&self) -> bool {
        self.runs.iter().all(|run| run.ingest.is_complete() && run.drain.is_complete())
    }

    /// Whether no figure misses its target.
    pub fn meets_targets(&self) -> bool {
        self.figures.iter().all(|figure| figure.meets_target() != Some(false))
    }
}

/// Does the whole measurement. Needs a multi-threaded Tokio runtime.
///
/// # Errors
/// When the stack or a service does not start or ends early.
pub async fn measure(args: &Figures) -> Result<FiguresReport> {
    ensure!(args.runs > 0 && args.packets > 0, "runs and packets must be 1 or more");
    let origin = Origin::here()?;
    let bench = Bench::start(args).await?;
    let corpus = args.shape.corpus(clock_seed())?;
    let mut runs = Vec::new();
    // Run 0 is the warm-up: a run like the others whose figures are dropped.
    for number in 0..=args.runs {
        let packets = if number == 0 { args.warm_up } else { args.packets };
        if packets == 0 {
            continue;
        }
        eprintln!("loadtest: run {number} of {}, {packets} packets", args.runs);
        let run = bench.run(number, packets, &corpus).await?;
        if number > 0 {
            runs.push(run);
        }
    }
    bench.stack.stop(GRACE).await?;
    Ok(FiguresReport { origin, shape: args.shape.clone(), figures: figures(&runs), runs })
}

/// The stack, which all runs share, and the programs under measurement.
struct Bench<'a> {
    args: &'a Figures,
    stack: Stack,
    ingest: PathBuf,
    processor: PathBuf,
}

impl<'a> Bench<'a> {
    async fn start(args: &'a Figures) -> Result<Self> {
        let bin = match &args.bin {
            Some(bin) => bin.clone(),
            None => std::env::current_exe()?.parent().map(Path::to_owned).context("loadtest is in no folder")?,
        };
        let program = |name: &str| {
            let path = bin.join(name);
            ensure!(path.exists(), "{} is missing: cargo build --release -p {name}", path.display());
            Ok(std::path::absolute(path)?)
        };
        let (ingest, processor) = (program("ingest")?, program("processor")?);
        // As production runs it. The stack's own default waits for the disk with every write, for tests that pull the plug.
        let stack = Stack::builder().brokers(1).cql(true).commit_log(CommitLog::Periodic).start().await?;
        Ok(Self { args, stack, ingest, processor })
    }

    /// Measures once, on topics and a table of its own: no run finds ids, offsets or rows of another.
    async fn run(&self, number: u64, packets: u64, corpus: &Arc<Corpus>) -> Result<Run> {
        let topics = TopicNames::with_suffix(&format!("-{number}"));
        let keyspace = format!("{}_{number}", cql::KEYSPACE);
        self.stack.create_topics(&topics, self.args.partitions).await?;
        self.stack.create_keyspace(&keyspace).await?;
        let ingest = self.ingest(number, &topics, packets, corpus).await?;
        let drain = self.drain(number, &topics, &keyspace).await?;
        Ok(Run { ingest, drain })
    }

    /// Loads ingest while no processor runs.
    async fn ingest(
        &self,
        number: u64,
        topics: &TopicNames,
        packets: u64,
        corpus: &Arc<Corpus>,
    ) -> Result<IngestReport> {
        let (grpc, admin) = (local_address()?, local_address()?);
        let own = [format!("grpc.listen={grpc}"), format!("admin.listen={admin}")];
        let launch = Launch::new("ingest", &self.ingest, self.folder(number))
            .args(self.settings(topics, &own, &self.args.ingest_set))
            .ready_when(Probe::Http { url: format!("http://{admin}/readyz") });
        let service = Process::launch(launch)?;
        service.ready().await?;
        let load = self.args.shape.load(format!("http://{grpc}"), 0, packets);
        let report = ingest::measure(corpus.clone(), &load, 0, &self.watched("ingest", &service)).await;
        end(&service, report).await
    }

    /// Runs the processor until the backlog is gone.
    async fn drain(&self, number: u64, topics: &TopicNames, keyspace: &str) -> Result<DrainReport> {
        let group = format!("{}-{number}", drain::GROUP);
        let backlog = Backlog::open(&self.stack.bootstrap_servers(), &group, std::slice::from_ref(&topics.packets))?;
        let admin = local_address()?;
        let own = [
            format!("admin.listen={admin}"),
            format!("cql.contact_points={}", self.stack.cql_contact()),
            format!("cql.keyspace={keyspace}"),
            format!("group.id={group}"),
            format!("source.topics={}", topics.packets),
        ];
        let launch = Launch::new("processor", &self.processor, self.folder(number)).args(self.settings(
            topics,
            &own,
            &self.args.processor_set,
        ));
        let service = Process::launch(launch)?;
        let watch = Watch {
            interval: Duration::from_millis(100),
            patience: Duration::from_secs(60),
            metrics_url: format!("http://{admin}/metrics"),
            commit_metric: drain::COMMIT_METRIC.to_owned(),
            processes: self.watched("processor", &service),
        };
        let report = drain::measure(&backlog, &watch).await;
        end(&service, report).await
    }

    fn folder(&self, number: u64) -> PathBuf {
        self.stack.dir().join(format!("run-{number}"))
    }

    /// The command line of a service: what both have in common, its own, and what the caller set.
    fn settings(&self, topics: &TopicNames, own: &[String], given: &[String]) -> Vec<String> {
        let common = [
            format!("kafka.bootstrap_servers={}", self.stack.bootstrap_servers()),
            format!("topics.packets={}", topics.packets),
            format!("topics.deduped={}", topics.deduped),
            format!("topics.ledger={}", topics.ledger),
            format!("topics.dlq={}", topics.dlq),
            format!("topics.canary={}", topics.canary),
        ];
        let all = common.iter().chain(own).chain(given);
        all.flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
    }

    fn watched(&self, name: &str, service: &Process) -> Vec<Watched> {
        let watched =
            |name: &str, process: &Process| Watched { name: name.to_owned(), pid: process.pid().cast_signed() };
        vec![watched(name, service), watched("kafka", self.stack.broker(0)), watched("cassandra", self.stack.cql())]
    }
}

fn local_address() -> std::io::Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

/// Ends a service in good order and passes on what was measured on it; with its last words where that failed.
async fn end<T>(service: &Process, measured: Result<T>) -> Result<T> {
    let said = || format!("the log of {} ends:\n{}", service.name(), service.log_tail(10));
    let measured = measured.with_context(said)?;
    let status = service.stop(GRACE).await?;
    ensure!(status.success(), "{} ended with {status}; {}", service.name(), said());
    Ok(measured)
}

fn figures(runs: &[Run]) -> Vec<Figure> {
    use Target::{AtLeast, Below};
    let figure = |what, unit, target, value: &dyn Fn(&Run) -> f64| {
        let values = runs.iter().map(value).collect();
        Figure { what, unit, target, values }
    };
    let per_100k = "CPU-s per 100,000";
    vec![
        figure("ingest: acknowledged", "packets/s", Some(AtLeast(80_000.0)), &|run| run.ingest.per_second),
        figure("ingest: acknowledgement p50", "ms", None, &|run| run.ingest.latency_ms.p50),
        figure("ingest: acknowledgement p99", "ms", None, &|run| run.ingest.latency_ms.p99),
        figure("ingest: peak RSS", "MB", Some(Below(256.0)), &|run| peak_rss(&run.ingest.processes, "ingest")),
        figure("ingest", per_100k, None, &|run| cpu(&run.ingest.processes, "ingest")),
        figure("kafka beside it", per_100k, None, &|run| cpu(&run.ingest.processes, "kafka")),
        figure("loadtest beside it", per_100k, None, &|run| cpu(&run.ingest.processes, "loadtest")),
        figure("processor: stored and committed", "records/s", Some(AtLeast(25_000.0)), &|run| run.drain.per_second),
        figure("processor: commit p50", "ms", Some(Below(20.0)), &|run| run.drain.commit_p50_ms.unwrap_or(f64::NAN)),
        figure("processor: commit p99", "ms", None, &|run| run.drain.commit_p99_ms.unwrap_or(f64::NAN)),
        figure("processor: peak RSS", "MB", Some(Below(512.0)), &|run| peak_rss(&run.drain.processes, "processor")),
        figure("processor: ids remembered then", "ids", None, &|run| run.drain.ids_remembered.unwrap_or(f64::NAN)),
        figure("processor", per_100k, None, &|run| cpu(&run.drain.processes, "processor")),
        figure("kafka beside it", per_100k, None, &|run| cpu(&run.drain.processes, "kafka")),
        figure("cassandra beside it", per_100k, None, &|run| cpu(&run.drain.processes, "cassandra")),
    ]
}

/// CPU seconds of the process `name` for every 100,000 records.
fn cpu(processes: &[Usage], name: &str) -> f64 {
    processes.iter().find(|usage| usage.name == name).map_or(f64::NAN, |usage| usage.cpu_seconds_per_100k)
}

/// Most memory the process `name` held, in MB.
fn peak_rss(processes: &[Usage], name: &str) -> f64 {
    processes.iter().find(|usage| usage.name == name).map_or(f64::NAN, |usage| usage.peak_rss_bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(target: Target, values: &[f64]) -> Figure {
        Figure { what: "rate", unit: "1/s", target: Some(target), values: values.to_vec() }
    }

    #[test]
    fn one_good_run_does_not_meet_a_target() {
        let figure = figure(Target::AtLeast(100.0), &[90.0, 300.0, 80.0]);
        assert_eq!((figure.median(), figure.range()), (90.0, (80.0, 300.0)));
        assert_eq!(figure.meets_target(), Some(false));
    }

    #[test]
    fn the_median_of_two_runs_lies_between_them() {
        let figure = figure(Target::Below(20.0), &[30.0, 10.0]);
        assert_eq!((figure.median(), figure.meets_target()), (20.0, Some(false)));
    }

    #[test]
    fn a_figure_that_was_not_measured_meets_nothing() {
        assert_eq!(figure(Target::Below(20.0), &[]).meets_target(), Some(false));
        assert_eq!(figure(Target::Below(20.0), &[f64::NAN]).meets_target(), Some(false));
    }
}
