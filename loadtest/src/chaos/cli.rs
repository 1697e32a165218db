//! `loadtest chaos`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use coderelay_devstack::{CommitLog, Stack};
use tokio_util::sync::CancellationToken;

use super::campaign::{Campaign, Campaigner};
use super::controls::Controls;
use super::plan::BROKERS;
use super::world::Programs;
use crate::devstack::programs;
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
        let programs = Programs { ingest, processor, flaw: None };
        let progress = Progress::new("chaos");
        progress.step("starting three brokers and Cassandra");
        let stack = Stack::builder().brokers(BROKERS).cql(true).linked(true).commit_log(CommitLog::Synced);
        let stack = stack.start().await?;
        drop(progress);
        if self.controls {
            let seeds = self.from..self.from + self.seeds;
            let controls = Box::pin(Controls::run(&stack, &programs, seeds, &self.out, &stop)).await?;
            return Ok(Found::Controls(controls));
        }
        let (from, seeds, out) = (self.from, self.seeds, self.out.as_path());
        let campaigner = Campaigner { from, seeds, programs: &programs, out, until_caught: false, stop };
        Ok(Found::Campaign(Box::pin(campaigner.run(&stack)).await?))
    }
}
