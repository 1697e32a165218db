//! The loss of a region under load: what is sent, what is killed, and what is asked of both sides afterwards.

use std::time::Duration;

use anyhow::{Context, ensure};
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::deployment::Deployment;
use super::home::Home;
use super::program::ask;
use super::state::Endpoints;

/// Which region dies; producers turn to the other.
const LOST: usize = 0;
/// Under load before it dies, the warm-up's ten seconds included.
const BEFORE: Duration = Duration::from_secs(25);
/// How long it is away.
const AWAY: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long one request to Kafka may take.
const REQUEST: Duration = Duration::from_secs(10);

/// The loss of a region of `deployment`.
pub(crate) struct RegionLoss<'a> {
    pub(crate) home: &'a Home,
    pub(crate) deployment: &'a Deployment,
    /// Packets a second.
    pub(crate) rate: u32,
    /// Whether packets wait for the mirror before they are acknowledged.
    pub(crate) mirrored: bool,
}

/// One line of the table.
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) measured: String,
    pub(crate) target: &'static str,
    pub(crate) met: bool,
    /// Whether it is a promise, and not a figure of this machine.
    pub(crate) promised: bool,
}

impl RegionLoss<'_> {
    /// Has packets sent to both regions, kills one meanwhile, brings it back, has every packet looked for in both and both compared.
    ///
    /// # Errors
    /// When a step cannot be done at all; what a step finds is in the findings.
    pub(crate) async fn inflict(&self) -> anyhow::Result<Vec<Finding>> {
        let regions = self.deployment.regions();
        let (lost, other) = (name(&regions[LOST]), name(&regions[1 - LOST]));
        say(&format!("sending {} packets a second, half of them to each region", self.rate));
        let taken = Taken::of(&regions[LOST].kafka)?;
        let death = async {
            while taken.count()? == 0 {
                sleep(LOOK).await;
            }
            sleep(BEFORE).await;
            say(&format!("{lost} is killed, all of it; its producers have to go on in {other}"));
            self.deployment.kill(LOST).await?;
            sleep(AWAY).await;
            say(&format!("{lost} comes back, with its disks"));
            self.deployment.restart(LOST).await?;
            anyhow::Ok(())
        };
        let failure = async {
            match death.await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        let summary = tokio::select! {
            summary = self.load() => summary?,
            error = failure => return Err(error),
        };
        let (packets, audits, figures) = (&summary["packets"], &summary["audits"], &summary["figures"]);
        ensure!(audits.is_object(), "the load was not audited: {:#}", summary["notes"]);
        let acknowledged = summary["audit"]["acknowledged"].as_u64().unwrap_or_default();

        say("comparing both regions");
        let differences = self.differences(&regions).await?;
        let both = |count: &str| [lost, other].map(|region| audits[region][count].to_string()).join(" and ");
        let clean = |count: &str| [lost, other].iter().all(|region| audits[region][count] == 0);
        let promise = |what, count: &str| Finding {
            what,
            measured: both(count),
            target: "0 and 0",
            met: clean(count),
            promised: true,
        };
        let seconds = |what, figure: &str, target, most: f64| {
            let took = figures[figure].as_f64();
            let measured = took.map_or_else(|| "–".to_owned(), |took| format!("{took:.1} s"));
            Finding { what, measured, target, met: took.is_some_and(|took| took < most), promised: false }
        };
        Ok(vec![
            Finding {
                what: "acknowledged, of all that were sent",
                measured: format!("{acknowledged}; {} failed", packets["failed"]),
                target: "all",
                met: packets["failed"] == 0,
                promised: true,
            },
            seconds("producers' longest gap until the next acknowledgement", "gap_s", "< 5 s", 5.0),
            promise("acknowledged and lost, in either region", "lost"),
            promise("doubled, in either region", "duplicated"),
            promise("altered, in either region", "altered"),
            seconds("both complete, after the end of the load", "converged_s", "< 60 s", 60.0),
            Finding {
                what: "differences between the regions, store and topic",
                measured: differences.to_string(),
                target: "0",
                met: differences == 0,
                promised: true,
            },
        ])
    }

    /// Loads both regions, has every packet looked for in both, and returns loadtest's summary.
    async fn load(&self) -> anyhow::Result<Value> {
        let out = self.home.nodes().join("loadtest").display().to_string();
        let (rate, names) = (
            format!("load.rate={}", self.rate),
            self.deployment.regions().iter().map(name).collect::<Vec<_>>().join(","),
        );
        let mut line = vec!["run", "two-regions", "--region", &names, "--out", &out, "--set", &rate];
        // A machine that starts two JVMs again makes the generator wait; what it says of latency then is not asked for here.
        line.extend([
            "--set",
            "load.warm_up=10s",
            "--set",
            "generator.max_slip=10s",
            "--set",
            "finish.patience=180s",
            "--set",
            "thresholds=[]",
        ]);
        if self.mirrored {
            line.extend(["--set", "load.ack=mirrored", "--set", "load.window=400"]);
        }
        let (_, summary) = ask(self.home, "loadtest", &self.deployment.regions(), &line).await?;
        ensure!(summary.is_object(), "loadtest has measured nothing");
        Ok(summary)
    }

    /// How many differences relayctl finds between the regions.
    async fn differences(&self, regions: &[Endpoints]) -> anyhow::Result<u64> {
        let address = |region: &Endpoints| format!("{},kafka={},cql={}", name(region), region.kafka, region.cql);
        let (one, other) = (address(&regions[0]), address(&regions[1]));
        let line = ["mirror", "verify", "--region", &one, "--region", &other, "--until", "2126-01-01"];
        let (_, report) = ask(self.home, "relayctl", regions, &line).await?;
        report["differences"].as_u64().with_context(|| format!("relayctl has compared nothing: {report}"))
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

fn name(region: &Endpoints) -> &str {
    region.region.as_deref().unwrap_or("local")
}

fn say(what: &str) {
    eprintln!("\n==> {what}");
}
