//! The subcommand `loadtest limits`.

use std::fs;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use coderelay_devstack::{CommitLog, Stack};
use indicatif::ProgressBar;
use time::OffsetDateTime;

use super::{Span, Target, summary, survey};
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
            let stack = Stack::builder().cql(true).commit_log(CommitLog::Periodic).start().await?;
            let summary = self.measure(stack.bootstrap_servers(), stack.cql_contact()).await;
            stack.stop(GRACE).await?;
            summary?
        };
        if let Some(out) = &self.out {
            fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
            let path = out.join("summary.json");
            let json = serde_json::to_string_pretty(&summary)?;
            fs::write(&path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(summary)
    }

    async fn measure(&self, bootstrap_servers: String, cql_contact: String) -> Result<Summary> {
        let span = Span { warm_up: self.warm_up, measured: self.seconds };
        let target =
            Target { bootstrap_servers, cql_contact, partitions: self.partitions, replicas: self.replicas, span };
        let (started, clock) = (OffsetDateTime::now_utc(), Instant::now());
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        let terminal = std::io::stderr().is_terminal();
        let limits = survey(&target, |line| {
            if terminal {
                spinner.set_message(line.to_owned());
            } else {
                eprintln!("loadtest: {line}");
            }
        });
        let limits = limits.await;
        spinner.finish_and_clear();
        summary(&target, &limits?, started, clock.elapsed().as_secs_f64())
    }
}
