//! The command line.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use coderelay_schemas::topics;
use serde::Serialize;

use crate::backlog::Backlog;
use crate::corpus::{Corpus, CorpusSpec};
use crate::drain::{self, Watch};
use crate::figures::{self, Figures};
use crate::generator::Load;
use crate::ingest;
use crate::report::Output;
use crate::resources::Watched;

/// Loads a coderelay deployment and measures what it did.
///
/// Exit codes: 0 measured and nothing amiss; 1 measured, but packets were left over or a target was missed; 2 not measured.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to write the report.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how fast ingest acknowledges packets.
    Ingest(IngestArgs),
    /// Measure how fast the processor consumes the backlog that is there.
    Drain(DrainArgs),
    /// Start a stack of its own and measure the figures that the documentation publishes.
    Figures(Figures),
}

#[derive(Debug, Args)]
struct IngestArgs {
    /// Where ingest listens.
    #[arg(long, env = "INGEST_ENDPOINT", default_value = "http://127.0.0.1:50051")]
    endpoint: String,
    #[command(flatten)]
    shape: Shape,
    /// Packets to send and measure.
    #[arg(long, default_value_t = 500_000)]
    packets: u64,
    /// Packets to send before, which are not measured.
    #[arg(long, default_value_t = 0)]
    warm_up: u64,
    /// Packets per second (open loop); without it as fast as the window allows (closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Chooses ids and contents: a second load of the same seed and shape sends duplicates. Default: the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Give a stream up that hears nothing for this long.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s")]
    patience: Duration,
    /// Report CPU and memory of a process (repeatable).
    #[arg(long, value_name = "NAME=PID")]
    watch: Vec<Watched>,
}

/// The load's shape, which every command that sends packets shares.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct Shape {
    /// Packets in a request.
    #[arg(long, default_value_t = 100)]
    pub per_request: u64,
    /// TCP connections.
    #[arg(long, default_value_t = 2)]
    pub connections: usize,
    /// Publish streams, dealt out over the connections.
    #[arg(long, default_value_t = 4)]
    pub streams: usize,
    /// Requests a stream may have in flight.
    #[arg(long, default_value_t = 8)]
    pub window: usize,
    /// Size of a packet's gzip content, in bytes.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Repositories the packets are spread over.
    #[arg(long, default_value_t = 1000)]
    pub repositories: u64,
    /// Packets in a row of one repository. Default: a request's.
    #[arg(long)]
    pub burst: Option<u64>,
}

impl Shape {
    /// The corpus of this shape.
    pub(crate) fn corpus(&self, seed: u64) -> Result<Arc<Corpus>> {
        let burst = self.burst.unwrap_or(self.per_request);
        let spec =
            CorpusSpec { seed, size: self.size, repositories: self.repositories, burst, ..CorpusSpec::default() };
        Ok(Arc::new(Corpus::new(spec)?))
    }

    /// A closed-loop load of this shape, from the corpus' packet `first` on.
    pub(crate) fn load(&self, endpoint: String, first: u64, packets: u64) -> Load {
        Load {
            endpoint,
            connections: self.connections,
            streams: self.streams,
            window: self.window,
            per_request: self.per_request,
            first,
            packets,
            rate: None,
            patience: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, Args)]
struct DrainArgs {
    /// Kafka's bootstrap servers.
    #[arg(long, env = "KAFKA_BOOTSTRAP", default_value = "127.0.0.1:9092")]
    bootstrap_servers: String,
    /// The processor's consumer group.
    #[arg(long, default_value = drain::GROUP)]
    group: String,
    /// Topic the group reads (repeatable).
    #[arg(long, default_value = topics::PACKETS)]
    topic: Vec<String>,
    /// The processor's admin server.
    #[arg(long, env = "PROCESSOR_ADMIN", default_value = "http://127.0.0.1:9465")]
    admin: String,
    /// Histogram of the commit time, in seconds.
    #[arg(long, default_value = drain::COMMIT_METRIC)]
    commit_metric: String,
    /// Time between two looks at the committed offsets.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "100ms")]
    interval: Duration,
    /// Stop when the group commits nothing for this long.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s")]
    patience: Duration,
    /// Report CPU and memory of a process (repeatable).
    #[arg(long, value_name = "NAME=PID")]
    watch: Vec<Watched>,
}

impl Cli {
    /// Runs the command and writes its report.
    ///
    /// # Errors
    /// When nothing could be measured.
    pub async fn run(self) -> Result<ExitCode> {
        let output = self.output;
        let good = match self.command {
            Command::Ingest(args) => {
                let report = args.measure().await?;
                print(output, &report, || report.table())?;
                report.is_complete()
            }
            Command::Drain(args) => {
                let report = args.measure().await?;
                print(output, &report, || report.table())?;
                report.is_complete()
            }
            Command::Figures(args) => {
                let report = figures::measure(&args).await?;
                print(output, &report, || report.markdown())?;
                report.is_complete() && (!args.enforce || report.meets_targets())
            }
        };
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

impl IngestArgs {
    async fn measure(self) -> Result<ingest::IngestReport> {
        let corpus = self.shape.corpus(self.seed.unwrap_or_else(clock_seed))?;
        let load = self.shape.load(url(&self.endpoint), 0, self.packets);
        let load = Load { rate: self.rate, patience: self.patience, ..load };
        ingest::measure(corpus, &load, self.warm_up, &self.watch).await
    }
}

impl DrainArgs {
    async fn measure(self) -> Result<drain::DrainReport> {
        let backlog = Backlog::open(&self.bootstrap_servers, &self.group, &self.topic)?;
        let watch = Watch {
            interval: self.interval,
            patience: self.patience,
            metrics_url: format!("{}/metrics", url(&self.admin)),
            commit_metric: self.commit_metric,
            processes: self.watch,
        };
        drain::measure(&backlog, &watch).await
    }
}

/// A seed no earlier load has used.
pub(crate) fn clock_seed() -> u64 {
    time::OffsetDateTime::now_utc().unix_timestamp_nanos() as u64
}

/// Accepts `host:port` for `http://host:port`.
fn url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

fn print(output: Output, report: &impl Serialize, table: impl FnOnce() -> String) -> Result<()> {
    match output {
        Output::Table => println!("{}", table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(report)?),
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

    #[test]
    fn an_endpoint_may_lack_its_scheme() {
        assert_eq!(url("127.0.0.1:50051"), "http://127.0.0.1:50051");
        assert_eq!(url("http://localhost:1/"), "http://localhost:1");
    }
}
