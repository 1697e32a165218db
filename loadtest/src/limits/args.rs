//! The subcommand `loadtest limits`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use coderelay_devstack::{CommitLog, Jit, Stack};

use super::{Span, Target, measure};
use crate::progress::Progress;
use crate::results::write_summary;
use crate::summary::Summary;

/// How long the stack may take to leave.
const GRACE: Duration = Duration::from_secs(60);

/// Measure what the parts can do without coderelay: Kafka, the store, gzip, BLAKE3 and gRPC.
#[derive(Clone, Debug, Args)]
pub struct LimitsArgs {
    /// Kafka's bootstrap servers. Without them a stack is started for the measurement.
    #[arg(long, env = "KAFKA_BOOTSTRAP", requires = "cql")]
    bootstrap_servers: Option<String>,
    /// A node of the store, `host:port`.
    #[arg(long, env = "CQL_CONTACT", requires = "bootstrap_servers")]
    cql: Option<String>,
    /// Partitions of the topics.
    #[arg(long, default_value_t = coderelay_schemas::topics::PARTITIONS)]
    partitions: i32,
    /// Replicas of topics and rows.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Each part runs three to ten times as long before it is measured, until its rate no longer grows.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    warm_up: Duration,
    /// How long each part is measured.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "3s")]
    seconds: Duration,
    /// Folder for `summary.json`.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl LimitsArgs {
    /// Measures everything, writes `summary.json` if asked to, and answers it.
    ///
    /// # Errors
    /// When a part cannot be reached or measured, or the summary cannot be written.
    pub async fn run(self) -> Result<Summary> {
        ensure!(self.partitions > 0, "partitions is {}; allowed: 1 and more", self.partitions);
        ensure!(self.replicas > 0, "replicas is 0; allowed: 1 and more");
        ensure!(self.seconds >= Duration::from_millis(100), "seconds is {:?}; allowed: 100ms and more", self.seconds);
        let summary = if let (Some(kafka), Some(cql)) = (&self.bootstrap_servers, &self.cql) {
            self.measure(kafka.clone(), cql.clone()).await?
        } else {
            // As production runs it: no wait for the disk.
            let stack = Stack::builder().cql(true).commit_log(CommitLog::Periodic).jit(Jit::Full).start().await?;
            let summary = self.measure(stack.bootstrap_servers(), stack.cql_contact()).await;
            stack.stop(GRACE).await?;
            summary?
        };
        if let Some(out) = &self.out {
            write_summary(out, &summary)?;
        }
        Ok(summary)
    }

    async fn measure(&self, bootstrap_servers: String, cql_contact: String) -> Result<Summary> {
        let span = Span { warm_up: self.warm_up, measured: self.seconds };
        let target =
            Target { bootstrap_servers, cql_contact, partitions: self.partitions, replicas: self.replicas, span };
        let progress = Progress::new("limits");
        measure(&target, |what| progress.step(what)).await
    }
}
