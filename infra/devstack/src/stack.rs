//! Kafka and Cassandra together: what a test asks for in one line.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use scylla::client::session::Session;
use tokio::sync::OnceCell;

use crate::cassandra::CommitLog;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::jars;
use crate::link::{Link, Rules};
use crate::process::Process;
use crate::progress::Observer;
use crate::readiness::{cql_session, quiet_client};
use crate::security::{Credentials, Security};
use crate::{cassandra, kafka};

mod links;

/// Between the ports of one region and those of the next, where particular ones are preferred.
pub const PORTS_A_REGION: u16 = 100;

/// What a [`Stack`] is made of; from [`Stack::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    region: Option<String>,
    brokers: usize,
    cql: bool,
    dir: Option<PathBuf>,
    kafka_port: Option<u16>,
    cql_port: Option<u16>,
    commit_log: CommitLog,
    secured: bool,
    linked: bool,
    broker_properties: String,
    observer: Observer,
}

impl Builder {
    /// One broker (the default) or three. With three, every topic has three replicas and needs two to acknowledge.
    #[must_use]
    pub fn brokers(mut self, brokers: usize) -> Self {
        self.brokers = brokers;
        self
    }

    /// Whether there is a Cassandra. Default: no.
    #[must_use]
    pub fn cql(mut self, cql: bool) -> Self {
        self.cql = cql;
        self
    }

    /// Keeps all files in `dir`, which stays when the stack is gone and whose data a later stack takes up. Default: a
    /// temporary folder that goes with the stack.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Ports to take if they are free. Default: any.
    #[must_use]
    pub fn preferred_ports(mut self, kafka: u16, cql: u16) -> Self {
        (self.kafka_port, self.cql_port) = (Some(kafka), Some(cql));
        self
    }

    /// When Cassandra acknowledges a write. Default: when it is on the disk.
    #[must_use]
    pub fn commit_log(mut self, commit_log: CommitLog) -> Self {
        self.commit_log = commit_log;
        self
    }

    /// Whether clients need TLS and a password, for Kafka and for Cassandra alike; see [`Stack::credentials`]. Default: no.
    #[must_use]
    pub fn secured(mut self, secured: bool) -> Self {
        self.secured = secured;
        self
    }

    /// Whether there is a second way to the brokers that can be [cut](Stack::cut) and on which requests can be
    /// [intercepted](Stack::intercept), in plain text. Default: no.
    #[must_use]
    pub fn linked(mut self, linked: bool) -> Self {
        self.linked = linked;
        self
    }

    /// Sets a property of every broker, beyond those that the stack sets.
    #[must_use]
    pub fn broker_property(mut self, name: &str, value: &str) -> Self {
        self.broker_properties.push_str(&format!("{name}={value}\n"));
        self
    }

    /// Who is told of the progress. Default: the log.
    #[must_use]
    pub fn observer(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Starts the nodes, all at once, and waits until each of them can do its work.
    ///
    /// # Errors
    /// [`Error::MissingProgram`] without Java 17 or, the first time, Maven; [`Error::Died`] with the last lines of its log
    /// as soon as a node has ended; [`Error::NotReady`] if one does not answer in time.
    pub async fn start(self) -> Result<Stack> {
        let folder = self.folder()?;
        let (kafka_jars, cassandra_jars) = self.jars().await?;
        let security = self.secured.then(|| Security::issue(folder.path())).transpose()?;
        let mut cluster = kafka::Cluster::new(kafka_jars, self.brokers, self.kafka_port, security.clone(), self.broker_properties)?;
        let rules = Rules::default();
        let links = if self.linked { cluster.link(&rules).await? } else { Vec::new() };
        let node = |jars| cassandra::Node::new(jars, self.cql_port, self.commit_log, security.clone());
        let node = cassandra_jars.map(node).transpose()?;

        let prefix = process_name(self.region.as_deref(), "");
        let cql = node.as_ref().map(|node| node.launch(folder.path(), &prefix)).transpose()?;
        let brokers = cluster.launch(folder.path(), &prefix)?;
        let credentials = security.map(|security| security.credentials);
        let stack = Stack { region: self.region, brokers, cql, cluster, links, rules, node, credentials, folder };
        stack.ready(&self.observer).await?;
        Ok(stack)
    }

    /// Fetches the jars that [`start`](Self::start) would fetch, and starts nothing.
    ///
    /// # Errors
    /// [`Error::MissingProgram`] without Maven, [`Error::Jars`] if they cannot be had.
    pub async fn fetch(self) -> Result<()> {
        self.jars().await.map(|_| ())
    }

    /// The same for one of several regions: its name before those of its processes, its folder in `dir`, and other ports than
    /// the region before it.
    pub(crate) fn region(&self, name: &str, index: u16, dir: &Path) -> Self {
        let port = |port: Option<u16>| port.map(|port| port + PORTS_A_REGION * index);
        Self {
            region: Some(name.to_owned()),
            dir: Some(dir.join(name)),
            kafka_port: port(self.kafka_port),
            cql_port: port(self.cql_port),
            ..self.clone()
        }
    }

    pub(crate) fn is_secured(&self) -> bool {
        self.secured
    }

    pub(crate) fn observer_of_start(&self) -> &Observer {
        &self.observer
    }

    /// The folder that the stack, or several of them, will have.
    pub(crate) fn folder(&self) -> Result<Folder> {
        match &self.dir {
            Some(dir) => Folder::at(std::path::absolute(dir).map_err(Error::io(dir))?),
            None => Folder::temporary(),
        }
    }

    async fn jars(&self) -> Result<(PathBuf, Option<PathBuf>)> {
        let (cql, observer) = (self.cql, self.observer.clone());
        let fetched = tokio::task::spawn_blocking(move || {
            let kafka = jars::KAFKA.jars(&observer)?;
            let cassandra = if cql { Some(jars::CASSANDRA.jars(&observer)?) } else { None };
            Ok((kafka, cassandra))
        });
        fetched.await.map_err(|error| Error::io("mvn")(error.into()))?
    }
}

/// A running Kafka cluster and, if wanted, a Cassandra node. They end when it is dropped, and with this process.
#[derive(Debug)]
pub struct Stack {
    region: Option<String>,
    brokers: Vec<Process>,
    cql: Option<Process>,
    cluster: kafka::Cluster,
    links: Vec<Link>,
    rules: Rules,
    node: Option<cassandra::Node>,
    credentials: Option<Credentials>,
    // Last: files are removed after the processes that write them are killed.
    folder: Folder,
}

impl Stack {
    /// One broker, no Cassandra, free ports, a temporary folder: change what you need.
    pub fn builder() -> Builder {
        let observer = Observer::default();
        Builder {
            region: None,
            brokers: 1,
            cql: false,
            dir: None,
            kafka_port: None,
            cql_port: None,
            commit_log: CommitLog::Synced,
            secured: false,
            linked: false,
            broker_properties: String::new(),
            observer,
        }
    }

    /// Its region, if it is one of several.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// What a process of this stack is called: `us-east.ingest` where there are several regions, else `ingest`.
    pub fn process_name(&self, name: &str) -> String {
        process_name(self.region(), name)
    }

    /// `host:port` of every broker, comma-separated.
    pub fn bootstrap_servers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// `host:port` of Cassandra's native transport.
    ///
    /// # Panics
    /// If the stack was built without [`Builder::cql`].
    pub fn cql_contact(&self) -> String {
        self.node.as_ref().map_or_else(|| no_cql(), cassandra::Node::contact)
    }

    /// What clients need, if the stack is [`secured`](Builder::secured).
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Settings with which a Kafka client reaches the brokers, secured or not.
    pub fn kafka_client(&self) -> ClientConfig {
        quiet_client(&self.bootstrap_servers(), self.credentials())
    }

    /// A session with Cassandra, as superuser where there are users.
    ///
    /// # Errors
    /// [`Error::Cql`] with the driver's reason.
    ///
    /// # Panics
    /// If the stack was built without [`Builder::cql`].
    pub async fn cql_session(&self) -> Result<Session> {
        let superuser = self.credentials().map(Credentials::superuser);
        cql_session(&self.cql_contact(), superuser.as_ref()).await.map_err(Error::Cql)
    }

    /// The broker at `index`, from 0; its `node.id` is `index + 1`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn broker(&self, index: usize) -> &Process {
        &self.brokers[index]
    }

    /// All brokers.
    pub fn brokers(&self) -> &[Process] {
        &self.brokers
    }

    /// The Cassandra node.
    ///
    /// # Panics
    /// If the stack was built without [`Builder::cql`].
    pub fn cql(&self) -> &Process {
        self.cql.as_ref().unwrap_or_else(|| no_cql())
    }

    /// Every node: Cassandra, if there is one, and the brokers.
    pub fn nodes(&self) -> impl Iterator<Item = &Process> {
        self.cql.iter().chain(&self.brokers)
    }

    /// The folder in which each node has its own.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves a temporary folder when the stack ends: for an hour since its start, every node's data and log can be looked at.
    pub fn keep(&self) {
        self.folder.keep();
    }

    /// Ends every node in good order: the brokers, then Cassandra.
    /// A node that does not leave within `grace` is killed.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let brokers = self.brokers.iter().map(|broker| broker.stop(grace));
        for stopped in futures::future::join_all(brokers).await {
            stopped?;
        }
        if let Some(cql) = &self.cql {
            cql.stop(grace).await?;
        }
        Ok(())
    }

    /// Kills every node at once (SIGKILL), as when a region is lost. No error if some were gone before.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub async fn kill(&self) -> Result<()> {
        futures::future::try_join_all(self.nodes().map(Process::kill)).await.map(|_| ())
    }

    /// Starts every node that has ended, with its disks, and waits until all can do their work.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn restart(&self) -> Result<()> {
        self.start_nodes(&Observer::default()).await
    }

    /// Kills what still runs, takes every node's disk away, starts all with empty ones at the same addresses, as when a region's machines were
    /// replaced, and waits until they can do their work. There are no topics and no keyspaces then; what they had written to their logs stays.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn restart_empty(&self, observer: &Observer) -> Result<()> {
        self.kill().await?;
        self.cluster.empty(self.dir())?;
        if let Some(node) = &self.node {
            node.empty(self.dir())?;
        }
        self.start_nodes(observer).await
    }

    /// Whether anything is left of what a node had written to its disk.
    pub fn has_disks(&self) -> bool {
        self.nodes().any(|node| node.dir().join("data").exists())
    }

    /// How many replicas each partition has.
    pub(crate) fn replicas(&self) -> usize {
        if self.brokers.len() < 3 { 1 } else { 3 }
    }

    async fn start_nodes(&self, observer: &Observer) -> Result<()> {
        for node in self.nodes() {
            node.start()?;
        }
        self.ready(observer).await
    }

    async fn ready(&self, observer: &Observer) -> Result<()> {
        futures::future::try_join_all(self.nodes().map(|node| node.ready_observed(observer))).await?;
        self.complete().await?;
        if self.cql.is_some() { self.create_role().await } else { Ok(()) }
    }

    /// Each broker answers; this waits until each knows all the others, so that topics get all their replicas.
    async fn complete(&self) -> Result<()> {
        let (client, expected) = (self.kafka_client(), self.brokers.len());
        let asked = tokio::task::spawn_blocking(move || -> Result<()> {
            let producer: BaseProducer = client.create()?;
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let known = producer.client().fetch_metadata(None, Duration::from_secs(5))?.brokers().len();
                if known >= expected {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    return Err(Error::Topic {
                        topic: "*".into(),
                        reason: format!("{known} of {expected} brokers known"),
                    });
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        asked.await.map_err(|error| Error::io("kafka")(error.into()))?
    }
}

fn process_name(region: Option<&str>, name: &str) -> String {
    region.map_or_else(|| name.to_owned(), |region| format!("{region}.{name}"))
}

fn no_cql() -> ! {
    panic!("this stack was built without Cassandra: Stack::builder().cql(true)")
}

/// One broker and Cassandra for all tests of this process, started by the first that asks.
///
/// # Panics
/// If it cannot be started: a test has no use for the error but to show it.
pub async fn shared() -> &'static Stack {
    static SHARED: OnceCell<Stack> = OnceCell::const_new();
    let start = || async {
        let started = Stack::builder().brokers(1).cql(true).start().await;
        started.unwrap_or_else(|error| panic!("no stack to test on: {error}"))
    };
    SHARED.get_or_init(start).await
}
