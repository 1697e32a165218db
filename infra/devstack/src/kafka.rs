//! A Kafka cluster of one or three nodes, each broker and controller at once (KRaft).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Result};
use crate::folder::remove;
use crate::jars;
use crate::jvm::{self, Jit};
use crate::link::{Link, Rules};
use crate::ports::{free_port, preferred_port};
use crate::process::Process;
use crate::readiness::Probe;
use crate::security::Security;

const LOG4J: &str = include_str!("../conf/log4j2.properties");

/// The largest record batch. A packet is up to 4 MiB of content and 16 KiB of metadata; the rest is room for headers,
/// for the `dlq.*` ones, and for clients that batch.
pub const MESSAGE_MAX_BYTES: usize = 6 * 1024 * 1024;

/// Where one node listens.
#[derive(Debug, Clone, Copy)]
struct Listener {
    id: i32,
    broker: u16,
    controller: u16,
    /// For clients that come over a link: where the node listens for them, and where the link does.
    linked: Option<(u16, u16)>,
}

/// What the nodes of a cluster share, before they are started.
#[derive(Debug)]
pub(crate) struct Cluster {
    jars: PathBuf,
    java: PathBuf,
    jit: Jit,
    id: String,
    listeners: Vec<Listener>,
    security: Option<Security>,
    /// Properties of every node beyond those that are set here, a line each.
    properties: String,
}

impl Cluster {
    /// A new cluster of `brokers` nodes; the first broker listens on `port` if that is free.
    pub(crate) fn new(
        jars: PathBuf,
        jit: Jit,
        brokers: usize,
        port: Option<u16>,
        security: Option<Security>,
        properties: String,
    ) -> Result<Self> {
        let listen = |index: usize| -> io::Result<Listener> {
            let broker = match port {
                Some(port) if index == 0 => preferred_port(port)?,
                _ => free_port()?,
            };
            Ok(Listener { id: index as i32 + 1, broker, controller: free_port()?, linked: None })
        };
        let listeners = (0..brokers).map(listen).collect::<io::Result<_>>().map_err(Error::io("127.0.0.1"))?;
        Ok(Self { jars, java: jars::java()?, jit, id: random_uuid(), listeners, security, properties })
    }

    /// Puts a link before every node, for those who ask [`linked_servers`](Self::linked_servers): brokers tell each client to come back
    /// the way it came. Their requests are subject to `rules`.
    pub(crate) async fn link(&mut self, rules: &Rules) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for listener in &mut self.listeners {
            let port = free_port().map_err(Error::io("127.0.0.1"))?;
            let link = Link::to(port, rules).await?;
            listener.linked = Some((port, link.port()));
            links.push(link);
        }
        Ok(links)
    }

    /// Starts every node, each in its folder below `dir` and with `prefix` before its name.
    pub(crate) fn launch(&self, dir: &Path, prefix: &str) -> Result<Vec<Process>> {
        let launch = |listener: &Listener| self.launch_node(*listener, &dir.join(node_name(*listener)), prefix);
        self.listeners.iter().map(launch).collect()
    }

    /// Takes every node's disk away, and gives it the empty one of a new cluster at the same addresses. None may be running.
    pub(crate) fn empty(&self, dir: &Path) -> Result<()> {
        let id = random_uuid();
        for listener in &self.listeners {
            let dir = dir.join(node_name(*listener));
            remove(&dir.join("data"))?;
            self.lay_out(*listener, &dir, &id)?;
        }
        Ok(())
    }

    /// Writes what a node finds when it starts: its configuration, and its formatted disk. A disk that has data keeps it.
    fn lay_out(&self, listener: Listener, dir: &Path, id: &str) -> Result<()> {
        let data = dir.join("data");
        fs::create_dir_all(&data).map_err(Error::io(&data))?;
        self.format(listener, &data, id)?;
        write(&properties(dir), &self.properties(listener, &data))?;
        write(&logging(dir), LOG4J)
    }

    fn launch_node(&self, listener: Listener, dir: &Path, prefix: &str) -> Result<Process> {
        self.lay_out(listener, dir, &self.id)?;
        let args = [
            "-Xms512m".to_owned(),
            "-Xmx512m".to_owned(),
            // By default a region is a megabyte here, and every larger request a humongous object.
            "-XX:+UseG1GC".to_owned(),
            "-XX:G1HeapRegionSize=8m".to_owned(),
            format!("-Dlog4j2.configurationFile={}", logging(dir).display()),
            "-cp".to_owned(),
            format!("{}/*", self.jars.display()),
            "kafka.Kafka".to_owned(),
            properties(dir).display().to_string(),
        ];
        let credentials = self.security.as_ref().map(|security| security.credentials.clone());
        let probe = Probe::Kafka { address: address(listener.broker), id: listener.id, credentials };
        let name = format!("{prefix}{}", node_name(listener));
        Process::launch(jvm::launch(name, &self.java, self.jit, dir)?.args(args).ready_when(probe))
    }

    /// What `kafka-storage format` would write, without a JVM per node. A folder that has data keeps it.
    fn format(&self, listener: Listener, data: &Path, cluster: &str) -> Result<()> {
        let meta = data.join("meta.properties");
        if meta.exists() {
            return Ok(());
        }
        let checkpoint = data.join("bootstrap.checkpoint");
        let features = self.feature_checkpoint(listener)?;
        fs::copy(&features, &checkpoint).map_err(Error::io(&features))?;
        let (directory, node) = (random_uuid(), listener.id);
        write(&meta, &format!("version=1\ncluster.id={cluster}\nnode.id={node}\ndirectory.id={directory}\n"))
    }

    /// The feature levels a new cluster of this Kafka version begins with. The file is the same for every cluster, so the
    /// storage tool writes it once, beside the jars.
    fn feature_checkpoint(&self, listener: Listener) -> Result<PathBuf> {
        let checkpoint = self.jars.join("bootstrap.checkpoint");
        if checkpoint.exists() {
            return Ok(checkpoint);
        }
        let work = tempfile::tempdir_in(&self.jars).map_err(Error::io(&self.jars))?;
        let (data, properties) = (work.path().join("data"), work.path().join("server.properties"));
        write(&properties, &self.properties(listener, &data))?;
        let output = self
            .tool("kafka.tools.StorageTool")
            .args(["format", "--cluster-id", &self.id, "--config"])
            .arg(&properties)
            .output()
            .map_err(Error::io(&self.java))?;
        let written = data.join("bootstrap.checkpoint");
        if !written.exists() {
            let text = [output.stdout, output.stderr].concat();
            let reason = io::Error::other(String::from_utf8_lossy(&text).into_owned());
            return Err(Error::io("kafka.tools.StorageTool")(reason));
        }
        fs::rename(&written, &checkpoint).map_err(Error::io(&checkpoint))?;
        Ok(checkpoint)
    }

    /// One of the tools that come with Kafka, to be given its arguments.
    pub(crate) fn tool(&self, class: &str) -> Command {
        let mut command = Command::new(&self.java);
        command.arg("-cp").arg(self.jars.join("*")).arg(class);
        command
    }

    fn properties(&self, listener: Listener, data: &Path) -> String {
        let Listener { id, broker, controller, linked } = listener;
        let voters: Vec<String> =
            self.listeners.iter().map(|voter| format!("{}@{}", voter.id, address(voter.controller))).collect();
        let voters = voters.join(",");
        let (replicas, in_sync) = if self.listeners.len() < 3 { (1, 1) } else { (3, 2) };
        // A node that was killed may register again only when its old session has ended. The only node of a cluster
        // cannot be missed by others: it may be short. Elsewhere a busy machine must not look like a dead broker.
        //
        // Killed and started again, the only node is fenced when its old session ends. A transaction that its coordinator aborts before,
        // being out of time, hangs: it takes partitions without a leader for deleted and writes them no marker (KAFKA-5202). So it looks
        // for such transactions later.
        let (session_ms, abort_ms) = if self.listeners.len() < 3 { (2_000, 3_000) } else { (6_000, 1_000) };
        let heartbeat_ms = session_ms / 6;
        let (data, others) = (data.display(), &self.properties);
        let (protocol, security) = match &self.security {
            None => ("PLAINTEXT", String::new()),
            Some(security) => ("SASL_SSL", security.kafka_properties()),
        };
        let linked = |what: &dyn Fn((u16, u16)) -> String| linked.map_or_else(String::new, what);
        let (listening, advertised, plain) = (
            linked(&|(port, _)| format!(",LINK://{}", address(port))),
            linked(&|(_, link)| format!(",LINK://{}", address(link))),
            linked(&|_| ",LINK:PLAINTEXT".to_owned()),
        );
        format!(
            "\
process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners={protocol}://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}{listening}
advertised.listeners={protocol}://127.0.0.1:{broker}{advertised}
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:PLAINTEXT{plain}
controller.listener.names=CONTROLLER
inter.broker.listener.name={protocol}
log.dirs={data}
broker.session.timeout.ms={session_ms}
broker.heartbeat.interval.ms={heartbeat_ms}
auto.create.topics.enable=false
num.partitions=12
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=4
message.max.bytes={MESSAGE_MAX_BYTES}
replica.fetch.max.bytes={MESSAGE_MAX_BYTES}
log.cleaner.dedupe.buffer.size=8388608
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms={abort_ms}
{security}{others}"
        )
    }

    /// `host:port` of every broker, comma-separated.
    pub(crate) fn bootstrap_servers(&self) -> String {
        self.listeners.iter().map(|listener| address(listener.broker)).collect::<Vec<_>>().join(",")
    }

    /// The same by way of the links, where there are any.
    pub(crate) fn linked_servers(&self) -> Option<String> {
        let addresses = self.listeners.iter().map(|listener| listener.linked.map(|(_, link)| address(link)));
        addresses.collect::<Option<Vec<_>>>().map(|addresses| addresses.join(","))
    }
}

fn node_name(listener: Listener) -> String {
    format!("kafka-{}", listener.id)
}

fn properties(dir: &Path) -> PathBuf {
    dir.join("server.properties")
}

fn logging(dir: &Path) -> PathBuf {
    dir.join("log4j2.properties")
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(path))
}

/// 16 random bytes as Kafka writes its ids: base64url without padding. Never with a dash in front, which command lines
/// would take for an option.
fn random_uuid() -> String {
    loop {
        let id = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        if !id.starts_with('-') {
            return id;
        }
    }
}
