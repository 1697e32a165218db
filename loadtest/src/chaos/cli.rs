//! `loadtest chaos`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coderelay_devstack::{Builder, CommitLog, Observer, Patience, Regions, Stack};
use coderelay_schemas::topics;
use tokio_util::sync::CancellationToken;

use super::campaign::{Campaign, Campaigner};
use super::controls::Controls;
use super::plan::{brokers, regions};
use super::world::Programs;
use crate::devstack::programs;
use crate::pipeline::Servers;
use crate::progress::Progress;

/// Try to lose or to double a packet: seeded faults on a stack of its own, judged exactly.
///
/// Needs services that were built with their failpoints, as `infra/dev chaos` builds them.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// How many seeds; with --controls, for each flaw at most.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=u64::from(u32::MAX)))]
    from: u64,
    /// Has the services make one mistake after the other, and tells how many seeds it takes to find each.
    #[arg(long)]
    controls: bool,
    /// Folder in which a seed that broke a promise leaves its plan, history and logs.
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
    /// Folder with the programs `ingest` and `processor`. Default: that of this program.
    #[arg(long)]
    bin: Option<PathBuf>,
}

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// About the promises.
    Campaign(Campaign),
    /// About the checker.
    Controls(Controls),
}

impl ChaosArgs {
    /// Plays the seeds.
    ///
    /// # Errors
    /// When the stack or the services cannot be started.
    pub async fn run(&self, stop: CancellationToken) -> Result<Found> {
        let (ingest, processor) = programs(self.bin.as_deref())?;
        let relayctl = processor.with_file_name("relayctl");
        ensure!(relayctl.exists(), "{} is missing: cargo build -p relayctl", relayctl.display());
        let programs = Programs { ingest, processor, relayctl, flaw: None };
        let (two, one): (Vec<_>, Vec<_>) = (self.from..self.from + self.seeds).partition(|seed| regions(*seed) > 1);
        if self.controls {
            let servers = one_region().await?;
            let controls = Box::pin(Controls::run(&servers, &programs, &one, &self.out, &stop)).await?;
            return Ok(Found::Controls(controls));
        }
        let mut campaign = Campaign::default();
        let campaigner = |seeds| {
            let (stop, out) = (stop.clone(), self.out.as_path());
            Campaigner { seeds, programs: &programs, out, until_caught: false, stop }
        };
        if !one.is_empty() {
            let servers = one_region().await?;
            Box::pin(campaigner(one).run(&servers, &mut campaign)).await?;
        }
        if !two.is_empty() && !stop.is_cancelled() {
            let servers = two_regions().await?;
            let supervised = servers.mirror().context("two regions are mirrored")?;
            let observer = Observer::default();
            let supervisor = supervised.supervise(Patience::default(), &observer);
            let campaigner = campaigner(two);
            tokio::select! {
                played = Box::pin(campaigner.run(&servers, &mut campaign)) => played?,
                Err(error) = supervisor => return Err(error.into()),
            }
        }
        Ok(Found::Campaign(campaign))
    }
}

async fn one_region() -> Result<Servers> {
    let progress = Progress::new("chaos");
    progress.step("starting three brokers and Cassandra");
    Ok(Servers::Stack(Box::new(servers().brokers(brokers(1)).start().await?)))
}

/// The mirror carries the topics of every seed.
async fn two_regions() -> Result<Servers> {
    let progress = Progress::new("chaos");
    progress.step("starting two regions, each with a broker and Cassandra, and MirrorMaker");
    let each = servers().mirror_property("topics", &format!("{}.*", topics::PACKETS.replace('.', "[.]")));
    Ok(Servers::Regions(Box::new(Regions::start(each).await?)))
}

/// Of each region.
fn servers() -> Builder {
    let servers = Stack::builder().cql(true).linked(true).commit_log(CommitLog::Synced);
    // By default as much as all of a seed's rows: a store would not notice that its disk is full.
    servers.cql_setting("commitlog_segment_size", "1MiB")
}
