//! What a stack is to be made of, and its start.

use std::path::{Path, PathBuf};

use coderelay_schemas::topics::PARTITIONS;

use super::{Stack, process_name};
use crate::cassandra::CommitLog;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::jars;
use crate::jvm::Jit;
use crate::link::Rules;
use crate::progress::Observer;
use crate::security::Security;
use crate::{cassandra, kafka};

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
    jit: Jit,
    secured: bool,
    linked: bool,
    partitions: i32,
    broker_properties: String,
    cql_settings: String,
    mirror_properties: String,
    observer: Observer,
}

impl Builder {
    /// One broker, no Cassandra, free ports, a temporary folder.
    pub(super) fn new() -> Self {
        Self {
            region: None,
            brokers: 1,
            cql: false,
            dir: None,
            kafka_port: None,
            cql_port: None,
            commit_log: CommitLog::Synced,
            jit: Jit::Quick,
            secured: false,
            linked: false,
            partitions: PARTITIONS,
            broker_properties: String::new(),
            cql_settings: String::new(),
            mirror_properties: String::new(),
            observer: Observer::default(),
        }
    }

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

    /// How far the JVMs compile their code. Default: as little as suits a test.
    #[must_use]
    pub fn jit(mut self, jit: Jit) -> Self {
        self.jit = jit;
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

    /// Partitions of the topics that [`Regions`](crate::Regions) creates. Default: the contract's.
    #[must_use]
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Sets a property of every broker, beyond those that the stack sets.
    #[must_use]
    pub fn broker_property(mut self, name: &str, value: &str) -> Self {
        self.broker_properties.extend([name, "=", value, "\n"]);
        self
    }

    /// Sets a setting of Cassandra's `cassandra.yaml`, beyond those that the stack sets.
    #[must_use]
    pub fn cql_setting(mut self, name: &str, value: &str) -> Self {
        self.cql_settings.extend([name, ": ", value, "\n"]);
        self
    }

    /// Sets a property of the `MirrorMaker` of [`Regions`](crate::Regions), beyond those of production or in their place.
    #[must_use]
    pub fn mirror_property(mut self, name: &str, value: &str) -> Self {
        self.mirror_properties.extend([name, "=", value, "\n"]);
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
        let (port, properties) = (self.kafka_port, self.broker_properties);
        let mut cluster = kafka::Cluster::new(kafka_jars, self.jit, self.brokers, port, security.clone(), properties)?;
        let rules = Rules::default();
        let links = if self.linked { cluster.link(&rules).await? } else { Vec::new() };
        let (port, settings) = (self.cql_port, self.cql_settings);
        let node = |jars| cassandra::Node::new(jars, self.jit, port, self.commit_log, security.clone(), settings);
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

    pub(crate) fn jit_of_start(&self) -> Jit {
        self.jit
    }

    pub(crate) fn partitions_of_topics(&self) -> i32 {
        self.partitions
    }

    pub(crate) fn mirror_properties(&self) -> &str {
        &self.mirror_properties
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
