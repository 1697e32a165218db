//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use coderelay_runtime::config::Assignment;
use coderelay_runtime::lifecycle::shutdown_signal;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, BenchArgs, keep};
use crate::chaos::{ChaosArgs, Found};
use crate::compare::CompareArgs;
use crate::deployment::DeploymentArgs;
use crate::devstack::Devstack;
use crate::limits::{self, LimitsArgs, Span};
use crate::merge::MergeArgs;
use crate::pipeline::Pipeline;
use crate::progress::Progress;
use crate::report::{self, ReportArgs};
use crate::results::Results;
use crate::run::Run;
use crate::scenario::{self, Scenario};
use crate::sizes::SizesArgs;
use crate::summary::{Summary, Verdict};
use crate::{targets, view};

/// A threshold does not hold, the generator fell behind, or a promise was broken.
const THRESHOLD: u8 = 99;
/// The scenario is wrong.
const CONFIGURATION: u8 = 104;
/// Ended by a signal.
const INTERRUPTED: u8 = 105;

/// Loads a coderelay deployment and measures what it did.
///
/// Exit codes: 0 measured and every threshold holds; 1 not measured; 2 wrong command line; 99 a threshold does not hold, the
/// generator fell behind, or a promise was broken; 104 the scenario is wrong; 105 interrupted, with what was measured so far.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to write results to standard output.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

/// How results are written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario, and audit and report what came of it.
    Run(Box<RunArgs>),
    /// The scenarios that come with the program.
    #[command(subcommand)]
    Scenarios(Scenarios),
    Bench(BenchArgs),
    Chaos(ChaosArgs),
    Limits(LimitsArgs),
    Sizes(SizesArgs),
    Report(ReportArgs),
    Compare(CompareArgs),
    Merge(MergeArgs),
}

#[derive(Debug, Subcommand)]
enum Scenarios {
    /// Names and purposes.
    List,
    /// One of them as TOML, to copy and change.
    Show {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Name of a built-in scenario, or a TOML file.
    scenario: String,
    /// Sets one key of the scenario, as in `load.rate=5000` (repeatable).
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Assignment>,
    #[command(flatten)]
    short: Shorthands,
    /// Folder for the results. Default: target/loadtest/<scenario>.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder with the summary.json of `loadtest limits`: every rate is also given as a share of its limit. Without it, limits
    /// are measured first if a threshold speaks of a ratio.
    #[arg(long)]
    limits: Option<PathBuf>,
    #[command(flatten)]
    deployment: DeploymentArgs,
}

/// Flags for what is changed most often; each is one `--set`.
#[derive(Debug, Args)]
struct Shorthands {
    /// Packets a second (load.rate).
    #[arg(long)]
    rate: Option<String>,
    /// Length of the measured part of an open loop (load.duration).
    #[arg(long)]
    duration: Option<String>,
    /// Sent before and not measured, of an open loop (`load.warm_up`).
    #[arg(long)]
    warm_up: Option<String>,
    /// Packets of a closed loop (load.packets).
    #[arg(long)]
    packets: Option<String>,
    /// Packets in a request (`load.per_request`).
    #[arg(long)]
    per_request: Option<String>,
    /// Publish streams (load.streams).
    #[arg(long)]
    streams: Option<String>,
    /// Requests a stream may have in flight (load.window).
    #[arg(long)]
    window: Option<String>,
    /// Size of a packet's content (corpus.size).
    #[arg(long)]
    size: Option<String>,
    /// Chooses ids and contents (corpus.seed).
    #[arg(long)]
    seed: Option<String>,
}

impl Shorthands {
    fn assignments(&self) -> impl Iterator<Item = Assignment> + '_ {
        let given = [
            ("load.rate", &self.rate),
            ("load.duration", &self.duration),
            ("load.warm_up", &self.warm_up),
            ("load.packets", &self.packets),
            ("load.per_request", &self.per_request),
            ("load.streams", &self.streams),
            ("load.window", &self.window),
            ("corpus.size", &self.size),
            ("corpus.seed", &self.seed),
        ];
        given.into_iter().filter_map(|(key, value)| Some(Assignment { key: key.to_owned(), value: value.clone()? }))
    }
}

impl Cli {
    /// Runs the command and writes its result.
    ///
    /// # Errors
    /// When nothing could be measured.
    pub async fn run(self) -> Result<ExitCode> {
        let output = self.output;
        match self.command {
            Command::Run(args) => args.run(output).await,
            Command::Scenarios(Scenarios::List) => {
                println!("{}", view::scenarios());
                Ok(ExitCode::SUCCESS)
            }
            Command::Scenarios(Scenarios::Show { name }) => match scenario::text(&name) {
                Ok((_, text)) => {
                    print!("{text}");
                    Ok(ExitCode::SUCCESS)
                }
                Err(error) => Ok(wrong(&error)),
            },
            Command::Bench(args) => bench(&args, output).await,
            Command::Chaos(args) => chaos(&args, output).await,
            Command::Limits(args) => {
                let summary = args.run().await?;
                print(output, &summary, || limits::markdown(&summary))?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Sizes(args) => {
                let sizes = args.run().await?;
                print(output, &sizes, || sizes.to_string())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Report(args) => args.run().map(|()| ExitCode::SUCCESS),
            Command::Compare(args) => {
                let comparison = args.run()?;
                print(output, &comparison, || comparison.to_string())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Merge(args) => args.run().map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Says what is wrong with the scenario.
fn wrong(error: &anyhow::Error) -> ExitCode {
    eprintln!("loadtest: {error:#}");
    ExitCode::from(CONFIGURATION)
}

impl RunArgs {
    async fn run(self, output: Output) -> Result<ExitCode> {
        let (name, text) = match scenario::text(&self.scenario) {
            Ok(found) => found,
            Err(error) => return Ok(wrong(&error)),
        };
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from("target/loadtest").join(&name));
        let set: Vec<_> = self.set.iter().cloned().chain(self.short.assignments()).collect();
        let scenario = match scenario::load(&keep(&out, &text)?, &set) {
            Ok(scenario) => scenario,
            Err(mistakes) => return Ok(wrong(&anyhow::anyhow!("{mistakes}"))),
        };
        let existing = match self.deployment.existing() {
            Ok(existing) => existing,
            Err(error) => return Ok(wrong(&error)),
        };
        if let Some(key) = scenario.needs_own_stack().filter(|_| existing.is_some()) {
            return Ok(wrong(&anyhow::anyhow!("{key} needs a stack of its own: --devstack, or no INGEST_ENDPOINT")));
        }
        let stop = shutdown_signal()?;
        let summary = self.measure(&name, &scenario, existing, out, stop).await?;
        print(output, &summary, || view::summary(&summary))?;
        Ok(ExitCode::from(match summary.verdict {
            Verdict::Passed => 0,
            Verdict::Missed | Verdict::Invalid => THRESHOLD,
            Verdict::Interrupted => INTERRUPTED,
        }))
    }
}

impl RunArgs {
    /// Runs the scenario on the deployment that is there, or on a stack of its own.
    async fn measure(
        &self,
        name: &str,
        scenario: &Scenario,
        existing: Option<Pipeline>,
        out: PathBuf,
        stop: CancellationToken,
    ) -> Result<Summary> {
        let progress = Progress::new(name);
        let (devstack, pipeline) = if let Some(pipeline) = existing {
            (None, pipeline)
        } else {
            progress.step("starting Kafka and Cassandra");
            let devstack = Devstack::start_for(scenario, self.deployment.bin()).await?;
            let pipeline = devstack.pipeline(scenario).await?;
            (Some(devstack), pipeline)
        };
        let limits = match &self.limits {
            Some(folder) => Results::read(folder)?.summary.rates,
            None if scenario.needs_limits() => {
                let endpoints = pipeline.endpoints();
                let target = limits::Target {
                    bootstrap_servers: endpoints.kafka.clone(),
                    cql_contact: endpoints.cql.clone(),
                    partitions: scenario.partitions,
                    replicas: 1,
                    span: Span { warm_up: Duration::from_secs(2), measured: Duration::from_secs(3) },
                };
                limits::measure(&target, |what| progress.step(what)).await?.rates
            }
            None => Vec::new(),
        };
        drop(progress);
        let limits = limits.into_iter().map(|rate| (rate.name, rate.per_second)).collect();
        let summary = Run { name, scenario, pipeline: &pipeline, limits: &limits, out: &out, stop }.execute().await;
        let failed = match &summary {
            Ok(summary) => matches!(summary.verdict, Verdict::Missed | Verdict::Invalid),
            Err(_) => true,
        };
        for note in if failed { pipeline.stop().await } else { pipeline.close().await } {
            eprintln!("{name}: {note}");
        }
        if let Some(devstack) = devstack {
            if failed {
                eprintln!("{name}: every process's log and data are kept for an hour in {}", devstack.keep().display());
            }
            devstack.stop().await?;
        }
        let summary = summary?;
        report::write(&out)?;
        Ok(summary)
    }
}

async fn bench(args: &BenchArgs, output: Output) -> Result<ExitCode> {
    let bench = args.run(shutdown_signal()?).await?;
    print(output, &bench.rows, || targets::table(&bench.rows))?;
    for broken in &bench.broken {
        eprintln!("loadtest: {broken}");
    }
    Ok(ExitCode::from(match bench {
        Bench { interrupted: true, .. } => INTERRUPTED,
        Bench { broken, .. } if !broken.is_empty() => 1,
        Bench { rows, .. } if args.enforce && rows.iter().any(|row| !row.met) => THRESHOLD,
        _ => 0,
    }))
}

async fn chaos(args: &ChaosArgs, output: Output) -> Result<ExitCode> {
    match args.run(shutdown_signal()?).await? {
        Found::Controls(controls) => {
            print(output, &controls, || controls.to_string())?;
            Ok(ExitCode::from(if controls.all_caught() { 0 } else { THRESHOLD }))
        }
        Found::Campaign(campaign) => {
            print(output, &campaign, || campaign.to_string())?;
            Ok(ExitCode::from(match campaign {
                _ if campaign.count() > 0 => THRESHOLD,
                _ if !campaign.broken.is_empty() => 1,
                _ if campaign.interrupted => INTERRUPTED,
                _ => 0,
            }))
        }
    }
}

fn print(output: Output, result: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
    match output {
        Output::Table => println!("{}", table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(result)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
