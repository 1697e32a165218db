//! Stacks of one's own: Kafka and Cassandra from `infra/devstack`, once or in two regions that mirror each other, and pipelines on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use coderelay_devstack::{CommitLog, Jit, Launch, Observer, Patience, Probe, REGIONS, Regions, Stack, free_port};
use coderelay_schemas::cql;
use coderelay_schemas::topics::TopicNames;
use tokio::task::AbortHandle;

use crate::deployment::{Endpoints, GROUP, url};
use crate::pipeline::{Own, Pipeline, Region, Servers};
use crate::resources::Watched;
use crate::scenario::{Scenario, Subject, Target};
use crate::service::{GRACE, Service};

/// Kafka and Cassandra, shared by runs that otherwise share nothing: each has topics, a keyspace and services of its own. Two regions
/// serve one run: what is mirrored has the contract's names.
#[derive(Debug)]
pub struct Devstack {
    servers: Arc<Servers>,
    supervisor: Option<AbortHandle>,
    ingest: PathBuf,
    processor: PathBuf,
    runs: AtomicU64,
}

impl Devstack {
    /// Starts one stack, as production runs it: acknowledging a row does not wait for the disk.
    ///
    /// # Errors
    /// When the services' programs are missing or a node does not start.
    pub async fn start(bin: Option<&Path>) -> Result<Self> {
        let (ingest, processor) = programs(bin)?;
        let stack = Stack::builder().cql(true).commit_log(CommitLog::Periodic).jit(Jit::Full).start().await?;
        let servers = Arc::new(Servers::Stack(Box::new(stack)));
        Ok(Self { servers, supervisor: None, ingest, processor, runs: AtomicU64::new(0) })
    }

    /// Starts what `scenario` needs.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_for(scenario: &Scenario, bin: Option<&Path>) -> Result<Self> {
        if scenario.regions == 1 {
            return Self::start(bin).await;
        }
        let (ingest, processor) = programs(bin)?;
        let hits = |target| scenario.faults.iter().any(|fault| fault.target == target);
        let cuts = hits(Target::Link) || scenario.subject == Subject::Mirror;
        // A store of one node that is killed has nobody to get back from what its disk has not.
        let commit_log = if hits(Target::Region) { CommitLog::Synced } else { CommitLog::Periodic };
        let each = Stack::builder().cql(true).commit_log(commit_log).jit(Jit::Full).linked(cuts);
        let each = each.partitions(scenario.partitions);
        let properties = scenario.mirrormaker.iter();
        let each = properties.fold(each, |each, (name, value)| each.mirror_property(name, value));
        let servers = Arc::new(Servers::Regions(Box::new(Regions::start(each).await?)));
        let supervised = servers.clone();
        let supervisor = tokio::spawn(async move {
            let Some(mirror) = supervised.mirror() else { return };
            let Err(error) = mirror.supervise(Patience::default(), &Observer::default()).await;
            eprintln!("loadtest: the mirror is left alone: {error}");
        });
        let supervisor = Some(supervisor.abort_handle());
        Ok(Self { servers, supervisor, ingest, processor, runs: AtomicU64::new(0) })
    }

    /// Kafka's bootstrap servers; of several regions, the first's.
    pub fn bootstrap_servers(&self) -> String {
        self.servers.stacks()[0].bootstrap_servers()
    }

    /// The store, `host:port`; of several regions, the first's.
    pub fn cql_contact(&self) -> String {
        self.servers.stacks()[0].cql_contact()
    }

    /// Topics, a keyspace and services for one run; the services are not started yet.
    ///
    /// # Errors
    /// When topics or keyspace cannot be made, or two runs would share what is mirrored.
    pub async fn pipeline(&self, scenario: &Scenario) -> Result<Pipeline> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        ensure!(number == 0 || self.servers.regions().is_none(), "two regions serve one run");
        let mut regions = Vec::new();
        for index in 0..self.servers.stacks().len() {
            regions.push(self.region(scenario, index, number).await?);
        }
        let mut watched: Vec<_> =
            regions.iter().filter_map(|region| region.own.as_ref()).flat_map(Own::watched).collect();
        if self.servers.mirror().is_some() {
            let servers = self.servers.clone();
            watched.push(Watched::new("mirrormaker", move || {
                servers.mirror().map(|mirror| mirror.process().pid().cast_signed())
            }));
        }
        Ok(Pipeline { regions, watched })
    }

    async fn region(&self, scenario: &Scenario, index: usize, run: u64) -> Result<Region> {
        let stack = &self.servers.stacks()[index];
        // The topics that are mirrored are there already.
        let (topics, suffix) = match stack.region() {
            Some(_) => (TopicNames::default(), String::new()),
            None => (TopicNames::with_suffix(&format!("-{run}")), format!("-{run}")),
        };
        if stack.region().is_none() {
            stack.create_topics(&topics, scenario.partitions).await?;
        }
        let keyspace = format!("{}{}", cql::KEYSPACE, suffix.replace('-', "_"));
        stack.create_keyspace(&keyspace).await?;
        let address = || Ok::<_, std::io::Error>(format!("127.0.0.1:{}", free_port()?));
        let (grpc, ingest_admin, processor_admin) = (address()?, address()?, address()?);
        let others = REGIONS.iter().filter(|_| stack.region().is_some()).filter(|name| stack.region() != Some(name));
        let mirrored = others.map(|name| format!("{name}.{}", topics.packets));
        let endpoints = Endpoints {
            kafka: stack.bootstrap_servers(),
            cql: stack.cql_contact(),
            keyspace,
            ingest: url(&grpc),
            ingest_admin: url(&ingest_admin),
            processor_admin: url(&processor_admin),
            sources: std::iter::once(topics.packets.clone()).chain(mirrored).collect(),
            topics,
            group: format!("{GROUP}{suffix}"),
        };
        let mut ingest = vec![format!("grpc.listen={grpc}"), format!("admin.listen={ingest_admin}")];
        ingest.extend(stack.region().map(|region| format!("region={region}")));
        let other = self.servers.stacks().iter().find(|other| other.region() != stack.region());
        ingest.extend(other.map(|other| format!("mirror.kafka.bootstrap_servers={}", other.linked_servers())));
        let mut processor = vec![
            format!("admin.listen={processor_admin}"),
            format!("cql.contact_points={}", endpoints.cql),
            format!("cql.keyspace={}", endpoints.keyspace),
            format!("group.id={}", endpoints.group),
        ];
        if stack.region().is_none() {
            processor.push(format!("source.topics={}", endpoints.topics.packets));
        }
        let folder = stack.dir().join(format!("run-{run}"));
        let service = |name: &'static str, program: &Path, admin: &str, own: &[String], given| {
            let settings = common(&endpoints.kafka, &endpoints.topics)
                .into_iter()
                .chain(own.iter().cloned())
                .chain(settings(given));
            let args = settings.flat_map(|setting| ["--set".to_owned(), setting]);
            let launch = Launch::new(stack.process_name(name), program, &folder).args(args);
            launch.ready_when(Probe::Http { url: format!("{}/readyz", url(admin)) })
        };
        let ingest = service("ingest", &self.ingest, &ingest_admin, &ingest, &scenario.ingest);
        let processor = service("processor", &self.processor, &processor_admin, &processor, &scenario.processor);
        let own = Own {
            ingest: Service::new("ingest", ingest),
            processor: Service::new("processor", processor.behind_the_topic()),
            servers: self.servers.clone(),
            region: index,
        };
        Ok(Region { name: stack.region().map(str::to_owned), endpoints, own: Some(own) })
    }

    /// Leaves every process's data and log for an hour after its end, to be looked at. The folder.
    pub fn keep(&self) -> &Path {
        match &*self.servers {
            Servers::Stack(stack) => {
                stack.keep();
                stack.dir()
            }
            Servers::Regions(regions) => {
                regions.keep();
                regions.dir()
            }
        }
    }

    /// Ends every node.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub async fn stop(&self) -> Result<()> {
        if let Some(supervisor) = &self.supervisor {
            supervisor.abort();
        }
        if let Some(mirror) = self.servers.mirror() {
            mirror.process().stop(GRACE).await?;
        }
        for stack in self.servers.stacks() {
            stack.stop(GRACE).await?;
        }
        Ok(())
    }
}

/// The programs `ingest` and `processor`, in `bin` or where this program is.
pub(crate) fn programs(bin: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    let bin = match bin {
        Some(bin) => bin.to_owned(),
        None => std::env::current_exe()?.parent().map(Path::to_owned).context("loadtest is in no folder")?,
    };
    // Tests run one folder below the programs.
    let bin = if bin.ends_with("deps") { bin.parent().map(Path::to_owned).unwrap_or(bin) } else { bin };
    let program = |name: &str| {
        let path = bin.join(name);
        ensure!(path.exists(), "{} is missing: cargo build --release -p {name}", path.display());
        Ok(std::path::absolute(path)?)
    };
    Ok((program("ingest")?, program("processor")?))
}

/// The settings that ingest and the processor of one deployment share.
pub(crate) fn common(kafka: &str, topics: &TopicNames) -> Vec<String> {
    vec![
        format!("kafka.bootstrap_servers={kafka}"),
        format!("topics.packets={}", topics.packets),
        format!("topics.deduped={}", topics.deduped),
        format!("topics.ledger={}", topics.ledger),
        format!("topics.dlq={}", topics.dlq),
        format!("topics.canary={}", topics.canary),
    ]
}

fn settings(given: &std::collections::BTreeMap<String, String>) -> impl Iterator<Item = String> {
    given.iter().map(|(key, value)| format!("{key}={value}"))
}
