//! One region of a world: how its services are started, and where they are reached.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use coderelay_devstack::{Launch, Probe, Stack, free_port};
use coderelay_runtime::flaw;
use coderelay_schemas::topics::TopicNames;
use tonic::transport::Endpoint;

use super::world::Programs;
use crate::devstack::common;

/// What all regions of a world share.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    /// Topics of its own.
    pub topics: TopicNames,
    /// How their names end.
    pub topic_suffix: String,
    /// A keyspace of its own.
    pub keyspace: String,
    /// A consumer group of its own.
    pub group: String,
    /// How long brokers keep transactions open.
    pub transaction_timeout: Duration,
    /// Packets that ingest takes at once, if that is to be few.
    pub room: Option<u32>,
    /// Whether old records expire while many wait.
    pub expires: bool,
    /// Whether the mirror keeps the order of records: a task that fails may have written later ones than that which was refused.
    pub mirrored_in_order: bool,
    /// Where the services log.
    pub folder: PathBuf,
    /// The services.
    pub programs: &'a Programs,
}

/// A region.
#[derive(Debug)]
pub struct Region<'a> {
    /// Kafka and the store.
    pub stack: &'a Stack,
    /// What all regions of the world share.
    pub identity: Identity<'a>,
    /// The topics that are processed: its own first, then those that are mirrored to it.
    pub sources: Vec<String>,
    /// Where ingest listens.
    pub endpoint: Endpoint,
    listen: String,
    admin: String,
}

impl<'a> Region<'a> {
    /// The region of `stack`, to which the topics of `others` are mirrored.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn new<'b>(stack: &'a Stack, others: impl Iterator<Item = &'b str>, identity: Identity<'a>) -> Result<Self> {
        let own = &identity.topics.packets;
        let sources = std::iter::once(own.clone()).chain(others.map(|other| format!("{other}.{own}"))).collect();
        let (listen, admin) = (address()?, address()?);
        let endpoint = Endpoint::from_shared(format!("http://{listen}"))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(2));
        Ok(Self { stack, identity, sources, endpoint, listen, admin })
    }

    /// Ingest.
    pub fn ingest(&self) -> Launch {
        let mut settings = vec![format!("grpc.listen={}", self.listen), format!("admin.listen={}", self.admin)];
        settings.extend(self.stack.region().map(|region| format!("region={region}")));
        if let Some(packets) = self.identity.room {
            settings.extend([format!("admission.packets={packets}"), "admission.max_wait=50ms".to_owned()]);
        }
        let ready = Probe::Http { url: format!("http://{}/readyz", self.admin) };
        self.launch("ingest", &self.identity.programs.ingest, settings).ready_when(ready)
    }

    /// A processor that logs as `log` and is `instance` of its group.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn processor(&self, log: &str, instance: &str) -> Result<Launch> {
        let mut settings = vec![
            format!("admin.listen={}", address()?),
            format!("cql.contact_points={}", self.stack.cql_contact()),
            format!("cql.keyspace={}", self.identity.keyspace),
            format!("group.id={}", self.identity.group),
            format!("group.instance={instance}"),
            // Short: faults are to outlast them.
            "group.session_timeout=6s".to_owned(),
            format!("group.transaction_timeout={}s", self.identity.transaction_timeout.as_secs()),
            "group.workers=1".to_owned(),
            // Many small transactions have many edges.
            "batch.max_records=60".to_owned(),
            format!("source.topics={}", self.sources.join(",")),
            // The mirror makes its topics when the processors run already.
            "kafka.properties.topic.metadata.refresh.interval.ms=1000".to_owned(),
        ];
        if self.identity.expires {
            settings.extend(["expiry.enabled=true", "expiry.backlog=20", "expiry.max_age=2s"].map(str::to_owned));
            // That is what the backlog is known from.
            settings.push("kafka.statistics_interval=200ms".to_owned());
        }
        Ok(self.launch(log, &self.identity.programs.processor, settings))
    }

    fn launch(&self, log: &str, program: &std::path::Path, own: Vec<String>) -> Launch {
        // Of mirrored regions the mirror's requests are mistreated, and its link is cut; the services go the straight way.
        let kafka = match self.stack.region() {
            None => self.stack.linked_servers(),
            Some(_) => self.stack.bootstrap_servers(),
        };
        let human = "telemetry.log_format=human".to_owned();
        let settings = common(&kafka, &self.identity.topics).into_iter().chain(own).chain([human]);
        let flaw = self.identity.programs.flaw.iter().map(|flaw| (flaw::VARIABLE, flaw.to_string()));
        Launch::new(self.stack.process_name(log), program, &self.identity.folder)
            .args(settings.flat_map(|setting| ["--set".to_owned(), setting]))
            .envs(flaw)
    }
}

fn address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}
