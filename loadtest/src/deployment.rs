//! What is loaded: a deployment that is there, or a pipeline of its own on a stack that several runs share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use coderelay_devstack::{CommitLog, Launch, Probe, Process, Stack, free_port};
use coderelay_schemas::cql;
use coderelay_schemas::topics::{PARTITIONS, TopicNames};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use scylla::client::session_builder::SessionBuilder;

use crate::resources::Watched;
use crate::scenario::Scenario;

/// How long a service may take to leave.
const GRACE: Duration = Duration::from_secs(60);
/// The processor's default consumer group.
pub const GROUP: &str = "coderelay-processor";

/// Where a deployment is reached.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// A node of the store, `host:port`.
    pub cql: String,
    /// The table's keyspace.
    pub keyspace: String,
    /// Ingest, as `http://host:port`.
    pub ingest: String,
    /// Ingest's admin server.
    pub ingest_admin: String,
    /// The processor's admin server.
    pub processor_admin: String,
    /// The topics.
    pub topics: TopicNames,
    /// The processor's consumer group.
    pub group: String,
}

/// Which deployment to load. `infra/dev up` writes the variables to `target/devstack/env`.
#[derive(Clone, Debug, Args)]
pub struct DeploymentArgs {
    /// Where ingest listens. Without it the run starts a stack of its own.
    #[arg(long, env = "INGEST_ENDPOINT")]
    endpoint: Option<String>,
    /// Kafka's bootstrap servers.
    #[arg(long, env = "KAFKA_BOOTSTRAP", default_value = "127.0.0.1:9092")]
    bootstrap_servers: String,
    /// A node of the store, `host:port`.
    #[arg(long, env = "CQL_CONTACT", default_value = "127.0.0.1:9042")]
    cql: String,
    /// The table's keyspace.
    #[arg(long, default_value = cql::KEYSPACE)]
    keyspace: String,
    /// Ingest's admin server.
    #[arg(long, env = "INGEST_ADMIN", default_value = "http://127.0.0.1:9464")]
    ingest_admin: String,
    /// The processor's admin server.
    #[arg(long, env = "PROCESSOR_ADMIN", default_value = "http://127.0.0.1:9465")]
    processor_admin: String,
    /// Suffix of the topics' names.
    #[arg(long, default_value = "")]
    topic_suffix: String,
    /// The processor's consumer group.
    #[arg(long, default_value = GROUP)]
    group: String,
    /// Report CPU and memory of a process of that deployment (repeatable).
    #[arg(long, value_name = "NAME=PID")]
    watch: Vec<Watched>,
    /// Start Kafka, Cassandra, ingest and processor for this run, whatever the environment names.
    #[arg(long)]
    devstack: bool,
    /// Folder of the programs `ingest` and `processor`, for a stack of its own. Default: where loadtest is.
    #[arg(long)]
    bin: Option<PathBuf>,
}

impl DeploymentArgs {
    /// The deployment that is there; `None` if the run is to start its own.
    pub fn existing(&self) -> Option<Pipeline> {
        let endpoint = self.endpoint.as_deref().filter(|_| !self.devstack)?;
        let endpoints = Endpoints {
            kafka: self.bootstrap_servers.clone(),
            cql: self.cql.clone(),
            keyspace: self.keyspace.clone(),
            ingest: url(endpoint),
            ingest_admin: url(&self.ingest_admin),
            processor_admin: url(&self.processor_admin),
            topics: TopicNames::with_suffix(&self.topic_suffix),
            group: self.group.clone(),
        };
        Some(Pipeline { endpoints, watched: self.watch.clone(), own: None })
    }

    /// Folder of the services' programs.
    pub fn bin(&self) -> Option<&Path> {
        self.bin.as_deref()
    }
}

/// Kafka and Cassandra, shared by runs that otherwise share nothing: each has topics, a keyspace and services of its own.
#[derive(Debug)]
pub struct Devstack {
    stack: Arc<Stack>,
    ingest: PathBuf,
    processor: PathBuf,
    runs: AtomicU64,
}

impl Devstack {
    /// Starts it, as production runs it: acknowledging a row does not wait for the disk.
    ///
    /// # Errors
    /// When the services' programs are missing or a node does not start.
    pub async fn start(bin: Option<&Path>) -> Result<Self> {
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
        let (ingest, processor) = (program("ingest")?, program("processor")?);
        let stack = Stack::builder().brokers(1).cql(true).commit_log(CommitLog::Periodic).start().await?;
        Ok(Self { stack: Arc::new(stack), ingest, processor, runs: AtomicU64::new(0) })
    }

    /// Kafka's bootstrap servers.
    pub fn bootstrap_servers(&self) -> String {
        self.stack.bootstrap_servers()
    }

    /// The store, `host:port`.
    pub fn cql_contact(&self) -> String {
        self.stack.cql_contact()
    }

    /// Topics, a keyspace and services for one run; the services are not started yet.
    ///
    /// # Errors
    /// When topics or keyspace cannot be made.
    pub async fn pipeline(&self, scenario: &Scenario) -> Result<Pipeline> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let (topics, keyspace) =
            (TopicNames::with_suffix(&format!("-{number}")), format!("{}_{number}", cql::KEYSPACE));
        self.stack.create_topics(&topics, PARTITIONS).await?;
        self.stack.create_keyspace(&keyspace).await?;
        let address = || Ok::<_, std::io::Error>(format!("127.0.0.1:{}", free_port()?));
        let (grpc, ingest_admin, processor_admin) = (address()?, address()?, address()?);
        let endpoints = Endpoints {
            kafka: self.stack.bootstrap_servers(),
            cql: self.stack.cql_contact(),
            keyspace,
            ingest: url(&grpc),
            ingest_admin: url(&ingest_admin),
            processor_admin: url(&processor_admin),
            topics,
            group: format!("{GROUP}-{number}"),
        };
        let folder = self.stack.dir().join(format!("run-{number}"));
        let ingest = [format!("grpc.listen={grpc}"), format!("admin.listen={ingest_admin}")];
        let processor = [
            format!("admin.listen={processor_admin}"),
            format!("cql.contact_points={}", endpoints.cql),
            format!("cql.keyspace={}", endpoints.keyspace),
            format!("group.id={}", endpoints.group),
            format!("source.topics={}", endpoints.topics.packets),
        ];
        let service = |name: &'static str, program: &Path, admin: &str, own: &[String], given| {
            let settings = common(&endpoints).into_iter().chain(own.iter().cloned()).chain(settings(given));
            let args = settings.flat_map(|setting| ["--set".to_owned(), setting]);
            let launch = Launch::new(name, program, &folder).args(args);
            launch.ready_when(Probe::Http { url: format!("{}/readyz", url(admin)) })
        };
        let ingest = service("ingest", &self.ingest, &ingest_admin, &ingest, &scenario.ingest);
        let processor = service("processor", &self.processor, &processor_admin, &processor, &scenario.processor);
        let own = Own {
            ingest: Service::new("ingest", ingest),
            processor: Service::new("processor", processor.behind_the_topic()),
            stack: self.stack.clone(),
        };
        let watched = own.watched();
        Ok(Pipeline { endpoints, watched, own: Some(own) })
    }

    /// Ends every node.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub async fn stop(&self) -> Result<()> {
        Ok(self.stack.stop(GRACE).await?)
    }
}

fn common(endpoints: &Endpoints) -> Vec<String> {
    let topics = &endpoints.topics;
    vec![
        format!("kafka.bootstrap_servers={}", endpoints.kafka),
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

/// What a run loads.
#[derive(Debug)]
pub struct Pipeline {
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// Whose CPU and memory are reported.
    pub watched: Vec<Watched>,
    /// The parts, if they are the run's own.
    pub own: Option<Own>,
}

/// The parts of a pipeline that a run may start, stop and treat badly.
#[derive(Clone, Debug)]
pub struct Own {
    /// gRPC to Kafka.
    pub ingest: Service,
    /// Kafka to CQL and Kafka.
    pub processor: Service,
    /// Kafka and Cassandra.
    pub stack: Arc<Stack>,
}

impl Own {
    fn watched(&self) -> Vec<Watched> {
        let service = |service: &Service| {
            let service = service.clone();
            Watched::new(service.name, move || service.pid())
        };
        let (kafka, cassandra) = (self.stack.clone(), self.stack.clone());
        vec![
            service(&self.ingest),
            service(&self.processor),
            Watched::new("kafka", move || Some(kafka.broker(0).pid().cast_signed())),
            Watched::new("cassandra", move || Some(cassandra.cql().pid().cast_signed())),
        ]
    }
}

impl Pipeline {
    /// The parts.
    ///
    /// # Errors
    /// If they are not the run's own.
    pub fn own(&self) -> Result<&Own> {
        self.own.as_ref().context("this needs a stack of its own: --devstack")
    }

    /// Stops services of its own in good order and removes topics and keyspace. Whatever is amiss is told in the answer.
    pub async fn close(&self) -> Vec<String> {
        let Some(own) = &self.own else { return Vec::new() };
        let mut notes = Vec::new();
        for service in [&own.ingest, &own.processor] {
            if let Err(error) = service.stop().await {
                notes.push(format!("{error:#}"));
            }
        }
        if let Err(error) = self.remove().await {
            notes.push(format!("topics or keyspace were not removed: {error:#}"));
        }
        notes
    }

    /// Old segments and tables would be compacted while the next run is measured.
    async fn remove(&self) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.endpoints.kafka).create()?;
        let specs = self.endpoints.topics.specs();
        let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let options = AdminOptions::new().operation_timeout(Some(GRACE)).request_timeout(Some(GRACE));
        for deleted in admin.delete_topics(&names, &options).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let session = Box::pin(SessionBuilder::new().known_node(&self.endpoints.cql).build()).await?;
        let dropped = format!("DROP KEYSPACE IF EXISTS {}", self.endpoints.keyspace);
        session.query_unpaged(dropped, ()).await?;
        Ok(())
    }
}

/// A program that can be started late, and again.
#[derive(Clone, Debug)]
pub struct Service {
    name: &'static str,
    launch: Launch,
    process: Arc<Mutex<Option<Arc<Process>>>>,
}

impl Service {
    fn new(name: &'static str, launch: Launch) -> Self {
        Self { name, launch, process: Arc::default() }
    }

    fn pid(&self) -> Option<i32> {
        self.process().filter(|process| process.is_running()).map(|process| process.pid().cast_signed())
    }

    /// The process, once it was started.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it and does not wait. Nothing if it runs.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn start(&self) -> Result<Arc<Process>> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = &*process {
            process.start()?;
            return Ok(process.clone());
        }
        let started = Arc::new(Process::launch(self.launch.clone())?);
        *process = Some(started.clone());
        Ok(started)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time.
    pub async fn ready(&self) -> Result<()> {
        Ok(self.start()?.ready().await?)
    }

    /// Ends it in good order, if it runs.
    ///
    /// # Errors
    /// If it does not end well; with its last words.
    pub async fn stop(&self) -> Result<()> {
        let Some(process) = self.process().filter(|process| process.is_running()) else { return Ok(()) };
        let status = process.stop(GRACE).await?;
        if !status.success() {
            bail!("{} ended with {status}; its log ends:\n{}", process.name(), process.log_tail(10));
        }
        Ok(())
    }
}

/// Accepts `host:port` for `http://host:port`.
pub(crate) fn url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_may_lack_its_scheme() {
        assert_eq!(url("127.0.0.1:50051"), "http://127.0.0.1:50051");
        assert_eq!(url("http://localhost:1/"), "http://localhost:1");
    }
}
