//! arguments ─▶ up ─▶ serve (detached) ─▶ deployment ─▶ state ─▶ view │ status, down; or run ─▶ deployment ─▶ relayctl demo; or regions ─▶ deployment ─▶ `region_loss`; or rebuild ─▶ serve ─▶ deployment

mod down;
mod fetch;
mod rebuild;
mod regions;
mod run;
mod serve;
mod status;
mod up;

mod deployment;
mod home;
mod program;
mod region_loss;
mod state;
mod view;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use home::Home;

/// The pipeline on this machine: Kafka, Cassandra, ingest and processor as child processes.
#[derive(Debug, Parser)]
#[command(name = "devstack", version, max_term_width = 100)]
struct Cli {
    /// Folder of data, logs and addresses [default: target/devstack beside this build].
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start everything in the background, wait until it is ready, and write the addresses to `target/devstack/env`.
    ///
    /// Starting what runs already is no error. Prints the addresses as `export` lines to standard output.
    Up(UpArgs),
    /// Stop everything in good order: ingest, processor, `MirrorMaker`, Kafka, Cassandra.
    Down,
    /// Show every process with its pid, addresses and whether it is ready.
    ///
    /// Exit code 0: all are ready. 1: one has died or is not ready. 3: nothing runs.
    Status(StatusArgs),
    /// Start everything afresh, relay every git-tracked file below PATH twice, show the evidence, and stay until Ctrl-C.
    Run(RunArgs),
    /// Start two regions afresh, kill one under load, bring it back, look for every packet in both, print the table, and stay until Ctrl-C.
    Regions(RegionsArgs),
    /// Give a region of `up --regions 2` that is dead and has lost its disks everything back that the other has of it, and compare both.
    ///
    /// Exit code 0: both hold the same, but for what had not been mirrored. 1: they differ, or it could not be done.
    Rebuild(RebuildArgs),
    /// Fetch the jars of Kafka and Cassandra into the user's cache; every start does it when they are missing.
    Fetch,
    /// Own the processes that `up` asks for; runs in the background.
    #[command(hide = true)]
    Serve(UpArgs),
}

#[derive(Debug, Clone, Args)]
struct UpArgs {
    /// Kafka brokers. With three, every topic has three replicas and two must acknowledge.
    #[arg(long, default_value = "1", value_parser = brokers)]
    brokers: usize,
    /// Regions: with two, `us-east` and `eu-west`, each with its own Kafka, Cassandra, ingest and processor, and a `MirrorMaker` between them.
    ///
    /// Every name in the environment then exists for each region (`INGEST_ENDPOINT_US_EAST`, `INGEST_ENDPOINT_EU_WEST`); those without are the first's.
    #[arg(long, default_value = "1", value_parser = region_count)]
    regions: usize,
    /// Go on with the data of the last `up` (of the same number of brokers and regions) instead of starting empty.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Text,
    /// One JSON document for programs.
    Json,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Files and folders to relay; what git tracks of them. Default: this repository.
    paths: Vec<PathBuf>,
    /// What to relay if no PATH is given.
    #[arg(long, hide = true, default_value = ".")]
    repository: PathBuf,
    /// Leave after the demonstration with its exit code: not 0 if any number is off.
    #[arg(long)]
    exit: bool,
    /// Kafka brokers, 1 or 3.
    #[arg(long, default_value = "1", value_parser = brokers)]
    brokers: usize,
}

#[derive(Debug, Args)]
struct RegionsArgs {
    /// Leave after the table, with exit code 1 if a packet was lost, doubled or altered or the regions differ.
    #[arg(long)]
    exit: bool,
    /// Packets a second, of both regions together, for seventy seconds.
    #[arg(long, default_value = "1000", value_name = "PACKETS", value_parser = clap::value_parser!(u32).range(50..=100_000))]
    rate: u32,
    /// Acknowledge packets only when they are durable in both regions.
    #[arg(long)]
    mirrored: bool,
}

#[derive(Debug, Args)]
struct RebuildArgs {
    /// `us-east` or `eu-west`; every process of its Kafka and Cassandra has to be dead.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(coderelay_devstack::REGIONS))]
    region: String,
    /// Delete what is left of its disks. Needed where anything is: a region with its disks needs no rebuilding.
    #[arg(long)]
    wipe: bool,
    /// What producers were told: the output of `relayctl push --output json`. Says which of these packets are lost; may be given again.
    #[arg(long, value_name = "FILE")]
    receipts: Vec<PathBuf>,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl RunArgs {
    fn paths_or_default(&self) -> Vec<PathBuf> {
        if self.paths.is_empty() { vec![self.repository.clone()] } else { self.paths.clone() }
    }
}

fn brokers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("one or three".into()),
    }
}

fn region_count(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err("one or two".into()),
    }
}

/// A line to standard output. That whoever reads it has seen enough (`status | head -1`) is no error.
fn print(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

pub(crate) async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let home = Home::of_this_build()?;
    let home = match cli.home {
        Some(dir) => home.below(std::path::absolute(dir)?),
        None => home,
    };
    match cli.verb {
        Verb::Up(args) => up::up(&home, &args).await,
        Verb::Down => down::down(&home).await,
        Verb::Status(args) => status::status(&home, args.output).await,
        Verb::Run(args) => Box::pin(run::run(&home, &args)).await,
        Verb::Regions(args) => Box::pin(regions::regions(&home, &args)).await,
        Verb::Rebuild(args) => rebuild::rebuild(&home, &args).await,
        Verb::Fetch => fetch::fetch().await,
        Verb::Serve(args) => Box::pin(serve::serve(&home, &args)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn two_brokers_and_three_regions_are_refused() {
        assert!(Cli::try_parse_from(["devstack", "up", "--brokers", "2"]).is_err());
        assert!(Cli::try_parse_from(["devstack", "up", "--brokers", "3"]).is_ok());
        assert!(Cli::try_parse_from(["devstack", "up", "--regions", "3"]).is_err());
        assert!(Cli::try_parse_from(["devstack", "up", "--regions", "2"]).is_ok());
    }
    #[test]
    fn disks_are_deleted_only_where_that_is_said_and_of_a_region_that_there_is() {
        let Verb::Rebuild(args) = Cli::try_parse_from(["devstack", "rebuild", "us-east"]).unwrap().verb else {
            panic!("another verb")
        };
        assert!(!args.wipe);
        assert!(Cli::try_parse_from(["devstack", "rebuild", "us-west", "--wipe"]).is_err());
        assert!(Cli::try_parse_from(["devstack", "rebuild", "--wipe"]).is_err());
    }
}
