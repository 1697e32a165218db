//! The loss of a region under load: what is sent, what is killed, and what is asked of both sides afterwards.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::deployment::Deployment;
use super::home::Home;
use super::state::Endpoints;

/// Which region dies; producers turn to the other.
const LOST: usize = 0;
/// One packet in so many is sent to both regions.
const SHARED_ONE_IN: usize = 10;
/// Records after which the region dies: more than a push has under way at once, so that some are acknowledged.
const BEFORE_DEATH: i64 = 2_000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// How long both regions may take to be equal.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long one request to Kafka may take.
const REQUEST: Duration = Duration::from_secs(10);

/// The loss of a region of `deployment`.
pub(crate) struct RegionLoss<'a> {
    pub(crate) home: &'a Home,
    pub(crate) deployment: &'a Deployment,
    /// How many packets are sent.
    pub(crate) packets: usize,
}

/// One line of the table.
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) target: String,
    pub(crate) met: bool,
    /// Whether it is a promise, and not a figure of this machine.
    pub(crate) promised: bool,
}

impl RegionLoss<'_> {
    /// Sends packets to both regions, kills one under load, brings it back and compares both.
    ///
    /// # Errors
    /// When a step cannot be done at all; what a step finds is in the findings.
    pub(crate) async fn inflict(&self) -> anyhow::Result<Vec<Finding>> {
        ensure!(self.packets as i64 > 3 * BEFORE_DEATH, "at least {} packets are needed", 3 * BEFORE_DEATH + 1);
        let shared = self.packets / SHARED_ONE_IN;
        let (both, rest) = (files("shared", shared)?, files("load", self.packets - shared)?);
        let regions = self.deployment.regions();
        let (lost, other) = (&regions[LOST], &regions[1 - LOST]);

        say(&format!("sending {shared} packets to either region, the same to both"));
        for region in [lost, other] {
            self.push(&both, shared, &[&region.ingest]).await?;
        }
        let report = self.equal(shared).await?;
        let complete = Value::from(vec![shared, shared]);
        let equal = report["differences"] == 0 && report["published"] == complete && report["stored"] == complete;
        ensure!(equal, "the regions differ before anything was done to them: {report:#}");

        say(&format!("sending {} packets, and killing {} meanwhile", self.packets - shared, name(lost)));
        let taken = (Taken::of(&lost.kafka)?, Taken::of(&other.kafka)?);
        let death = async {
            let (before, elsewhere) = (taken.0.count()?, taken.1.count()?);
            while taken.0.count()? < before + BEFORE_DEATH {
                sleep(LOOK).await;
            }
            let died = Instant::now();
            self.deployment.kill(LOST).await?;
            while taken.1.count()? == elsewhere {
                ensure!(died.elapsed() < PATIENCE, "nothing was sent to {}", name(other));
                sleep(LOOK).await;
            }
            Ok(died.elapsed())
        };
        let endpoints: [&str; 2] = [&lost.ingest, &other.ingest];
        let (pushed, gap) = tokio::try_join!(self.push(&rest, self.packets - shared, &endpoints), death)?;
        let acknowledged = |index: usize| pushed["endpoints"][index]["committed"].as_u64().unwrap_or_default();

        say(&format!("{} comes back, with its disks", name(lost)));
        self.deployment.restart(LOST).await?;
        let back = Instant::now();
        let report = self.equal(self.packets).await?;
        Ok(vec![
            figure("acknowledged by the region that died", &acknowledged(0).to_string(), "> 0", acknowledged(0) > 0),
            figure("acknowledged by the other, afterwards", &acknowledged(1).to_string(), "> 0", acknowledged(1) > 0),
            seconds("producers' gap until the next acknowledgement", gap, 5),
            promise("published in each region, each once", &report["published"], self.packets),
            promise("stored in each region", &report["stored"], self.packets),
            Finding {
                what: "differences between the regions".into(),
                measured: report["differences"].to_string(),
                target: "0".into(),
                met: report["differences"] == 0,
                promised: true,
            },
            seconds("both equal, after the return", back.elapsed(), 60),
        ])
    }

    /// Pushes a folder of `packets` files and returns the summary.
    async fn push(&self, folder: &TempDir, packets: usize, endpoints: &[&str]) -> anyhow::Result<Value> {
        let endpoints = endpoints.join(",");
        let folder = folder.path().display().to_string();
        let line = ["push", &folder, "--repo", "coderelay/regions", "--endpoint", &endpoints, "--patience", "60s"];
        let (success, summary) = self.relayctl(&line).await?;
        let summary = summary["summary"].clone();
        ensure!(success && summary["committed"] == packets, "not everything was acknowledged: {summary}");
        Ok(summary)
    }

    /// Waits until both regions hold the same `packets` packets, and returns what was compared; also where they do not in time.
    async fn equal(&self, packets: usize) -> anyhow::Result<Value> {
        let address = |region: &Endpoints| format!("{},kafka={},cql={}", name(region), region.kafka, region.cql);
        let regions: Vec<_> = self.deployment.regions().iter().map(address).collect();
        let line = ["mirror", "verify", "--region", &regions[0], "--region", &regions[1], "--until", "2126-01-01"];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (equal, report) = self.relayctl(&line).await?;
            let complete = Value::from(vec![packets, packets]);
            if (equal && report["published"] == complete && report["stored"] == complete) || Instant::now() > deadline {
                return Ok(report);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Runs relayctl: whether it succeeded, and the last document it wrote, if any.
    async fn relayctl(&self, line: &[&str]) -> anyhow::Result<(bool, Value)> {
        let program = self.home.program("relayctl");
        let mut command = Command::new(&program);
        command.args(["--output", "json"]).args(line).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let output = command.output().await.with_context(|| program.display().to_string())?;
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let last = documents.last().transpose().context("relayctl writes JSON")?;
        Ok((output.status.success(), last.unwrap_or_default()))
    }
}

/// Counts what a region's ingest has written.
struct Taken(BaseConsumer);

impl Taken {
    fn of(bootstrap_servers: &str) -> anyhow::Result<Self> {
        // A region that has died is no news here.
        let quiet = [("bootstrap.servers", bootstrap_servers), ("group.id", "devstack"), ("log_level", "0")];
        Ok(Self(quiet.iter().fold(&mut ClientConfig::new(), |config, (key, value)| config.set(*key, *value)).create()?))
    }

    fn count(&self) -> anyhow::Result<i64> {
        let end = |partition| anyhow::Ok(self.0.fetch_watermarks(PACKETS, partition, REQUEST)?.1);
        block_in_place(|| (0..PARTITIONS).map(end).sum())
    }
}

/// A folder of files of about 1 KB.
fn files(prefix: &str, count: usize) -> anyhow::Result<TempDir> {
    let folder = TempDir::with_prefix("coderelay-")?;
    for n in 0..count {
        let text = format!("fn {prefix}_{n}() -> u64 {{ {n} }}\n").repeat(32);
        fs::write(folder.path().join(format!("{n}.rs")), text).with_context(|| folder.path().display().to_string())?;
    }
    Ok(folder)
}

fn name(region: &Endpoints) -> &str {
    region.region.as_deref().unwrap_or("local")
}

fn say(what: &str) {
    eprintln!("\n==> {what}");
}

fn figure(what: &str, measured: &str, target: &str, met: bool) -> Finding {
    Finding { what: what.into(), measured: measured.into(), target: target.into(), met, promised: false }
}

fn seconds(what: &str, took: Duration, most: u64) -> Finding {
    figure(what, &format!("{:.2} s", took.as_secs_f64()), &format!("< {most} s"), took < Duration::from_secs(most))
}

fn promise(what: &str, measured: &Value, packets: usize) -> Finding {
    let met = *measured == Value::from(vec![packets, packets]);
    Finding { what: what.into(), measured: measured.to_string(), target: packets.to_string(), met, promised: true }
}
