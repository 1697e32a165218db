//! Kafka and Cassandra together: what a test asks for in one line.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use scylla::client::session::Session;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::link::{Link, Rules};
use crate::process::Process;
use crate::progress::Observer;
use crate::readiness::{cql_session, quiet_client};
use crate::security::Credentials;
use crate::{cassandra, kafka};

mod builder;
mod links;

pub use builder::{Builder, PORTS_A_REGION};

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
        Builder::new()
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

    /// The brokers' jars and configuration.
    pub(crate) fn cluster(&self) -> &kafka::Cluster {
        &self.cluster
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
