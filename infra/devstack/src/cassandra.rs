//! One Cassandra node, set up with its fast formats and nothing that ScyllaDB does not have.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::folder::remove;
use crate::jars;
use crate::jvm::{self, Jit};
use crate::ports::{free_port, preferred_port};
use crate::process::Process;
use crate::readiness::Probe;
use crate::security::Security;

const LOGBACK: &str = include_str!("../conf/logback.xml");

/// What Cassandra 5.0 needs of Java 17, from its `jvm17-server.options`.
const EXPORTS: &[&str] = &[
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
];
const OPENS: &[&str] = &[
    "java.base/java.lang",
    "java.base/java.util",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.lang.module",
    "java.base/sun.nio.ch",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "jdk.management/com.sun.management.internal",
];

/// Its garbage collector as `jvm17-server.options` sets it up. By default G1's regions are so small here that every slab of a memtable
/// is a humongous object.
const GC: &[&str] = &[
    "-XX:+UseG1GC",
    "-XX:+ParallelRefProcEnabled",
    "-XX:MaxTenuringThreshold=2",
    "-XX:G1HeapRegionSize=16m",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:G1NewSizePercent=50",
    "-XX:G1RSetUpdatingPauseTimePercent=5",
    "-XX:MaxGCPauseMillis=300",
    "-XX:InitiatingHeapOccupancyPercent=70",
];

/// When Cassandra acknowledges a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitLog {
    /// When it is on the disk: nothing acknowledged is lost, whatever is killed. What a test of faults needs of a lone node.
    #[default]
    Synced,
    /// Before, as production does, where replicas make up for it: a killed process forgets up to the last 100 ms, after which
    /// a replay finds no sync marker. Two to five times the rate.
    Periodic,
}

impl CommitLog {
    fn yaml(self) -> &'static str {
        match self {
            // Each writer holds a thread while it waits for the disk; the usual 32 would bound the rate.
            Self::Synced => "commitlog_sync: batch\nconcurrent_writes: 128",
            Self::Periodic => "commitlog_sync: periodic\ncommitlog_sync_period: 10000ms",
        }
    }
}

/// A node, before it is started.
#[derive(Debug)]
pub(crate) struct Node {
    jars: PathBuf,
    java: PathBuf,
    jit: Jit,
    cql_port: u16,
    storage_port: u16,
    commit_log: CommitLog,
    security: Option<Security>,
    /// Settings beyond those that are set here, a line each.
    settings: String,
}

impl Node {
    /// A new node; CQL on `port` if that is free.
    pub(crate) fn new(
        jars: PathBuf,
        jit: Jit,
        port: Option<u16>,
        commit_log: CommitLog,
        security: Option<Security>,
        settings: String,
    ) -> Result<Self> {
        let any = || free_port().map_err(Error::io("127.0.0.1"));
        let cql_port = match port {
            Some(port) => preferred_port(port).map_err(Error::io("127.0.0.1"))?,
            None => any()?,
        };
        Ok(Self { jars, java: jars::java()?, jit, cql_port, storage_port: any()?, commit_log, security, settings })
    }

    /// `host:port` of its native transport.
    pub(crate) fn contact(&self) -> String {
        format!("127.0.0.1:{}", self.cql_port)
    }

    /// Starts it in its folder below `dir`, with `prefix` before its name.
    pub(crate) fn launch(&self, dir: &Path, prefix: &str) -> Result<Process> {
        let dir = dir.join("cassandra");
        let conf = self.lay_out(&dir)?;
        let credentials = self.security.as_ref().map(|security| security.credentials.superuser());
        let probe = Probe::Cql { address: self.contact(), credentials };
        let args = self.java_args(&dir, &conf)?;
        let launch = jvm::launch(format!("{prefix}cassandra"), &self.java, self.jit, &dir)?.args(args);
        Process::launch(launch.ready_when(probe).behind_the_topic())
    }

    /// Takes its disk away. It must not be running.
    pub(crate) fn empty(&self, dir: &Path) -> Result<()> {
        let dir = dir.join("cassandra");
        remove(&dir.join("data"))?;
        self.lay_out(&dir).map(|_| ())
    }

    /// Writes its configuration into a folder in `dir`.
    fn lay_out(&self, dir: &Path) -> Result<PathBuf> {
        let conf = dir.join("conf");
        fs::create_dir_all(&conf).map_err(Error::io(&conf))?;
        let yaml = conf.join("cassandra.yaml");
        fs::write(&yaml, self.yaml(&dir.join("data"))).map_err(Error::io(&yaml))?;
        let logback = conf.join("logback.xml");
        fs::write(&logback, LOGBACK).map_err(Error::io(&logback))?;
        Ok(conf)
    }

    fn java_args(&self, dir: &Path, conf: &Path) -> Result<Vec<String>> {
        let exports = EXPORTS.iter().flat_map(|package| ["--add-exports".into(), format!("{package}=ALL-UNNAMED")]);
        let opens = OPENS.iter().flat_map(|package| ["--add-opens".into(), format!("{package}=ALL-UNNAMED")]);
        let (jars, conf, dir, jamm) = (self.jars.display(), conf.display(), dir.display(), self.jamm()?);
        let options = [
            "-Xms1g".into(),
            "-Xmx1g".into(),
            "-Xss512k".into(),
            "-XX:MaxDirectMemorySize=512m".into(),
            "-XX:+HeapDumpOnOutOfMemoryError".into(),
            "-XX:+ExitOnOutOfMemoryError".into(),
            format!("-javaagent:{}", jamm.display()),
            "-Djdk.attach.allowAttachSelf=true".into(),
            "-Djna.nosys=true".into(),
            format!("-Dcassandra.config=file://{conf}/cassandra.yaml"),
            format!("-Dcassandra.storagedir={dir}/data"),
            format!("-Dlogback.configurationFile={conf}/logback.xml"),
            // One node has nobody to gossip with.
            "-Dcassandra.ring_delay_ms=0".into(),
            "-Dcassandra.skip_wait_for_gossip_to_settle=0".into(),
            "-Dcassandra.superuser_setup_delay_ms=0".into(),
        ];
        let gc = GC.iter().map(|option| (*option).to_owned());
        let class = ["-cp".into(), format!("{conf}:{jars}/*"), "org.apache.cassandra.service.CassandraDaemon".into()];
        Ok(exports.chain(opens).chain(gc).chain(options).chain(class).collect())
    }

    /// The agent that Cassandra measures its memory tables with.
    fn jamm(&self) -> Result<PathBuf> {
        let entries = fs::read_dir(&self.jars).map_err(Error::io(&self.jars))?;
        entries
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("jamm-"))
            .map(|entry| entry.path())
            .ok_or_else(|| Error::io(&self.jars)(std::io::Error::other("has no jamm-*.jar")))
    }

    fn yaml(&self, data: &Path) -> String {
        let Self { cql_port, storage_port, settings, .. } = self;
        let (data, commit_log) = (data.display(), self.commit_log.yaml());
        let security = self.security.as_ref().map(Security::cassandra_yaml).unwrap_or_default();
        format!(
            r#"cluster_name: coderelay
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider: [{{class_name: org.apache.cassandra.locator.SimpleSeedProvider, parameters: [{{seeds: "127.0.0.1:{storage_port}"}}]}}]
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: {storage_port}
native_transport_port: {cql_port}
{commit_log}
data_file_directories: ["{data}/data"]
commitlog_directory: "{data}/commitlog"
saved_caches_directory: "{data}/saved_caches"
hints_directory: "{data}/hints"
cdc_raw_directory: "{data}/cdc"
memtable: {{configurations: {{skiplist: {{class_name: SkipListMemtable}}, trie: {{class_name: TrieMemtable}}, default: {{inherits: trie}}}}}}
memtable_allocation_type: offheap_objects
sstable: {{selected_format: bti}}
storage_compatibility_mode: NONE
batch_size_warn_threshold: 1MiB
batch_size_fail_threshold: 8MiB
auto_snapshot: false
disk_failure_policy: stop
commit_failure_policy: stop
{security}{settings}"#
        )
    }
}
