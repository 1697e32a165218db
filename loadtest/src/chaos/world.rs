//! What one seed is played in: topics, a keyspace and services of its own, on servers that all seeds share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use coderelay_devstack::{Launch, Probe, Process, Stack, free_port};
use coderelay_runtime::flaw::{self, Flaw};
use coderelay_schemas::topics::TopicNames;
use tonic::transport::Endpoint;

use super::history::History;
use super::keeper::Keeper;
use super::plan::{PARTITIONS, PROCESSORS, Plan, Service};
use crate::devstack::common;

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Ingest.
    pub ingest: PathBuf,
    /// The processor, built with its failpoints.
    pub processor: PathBuf,
    /// A deliberate flaw that either of them is to have, if it was built with any.
    pub flaw: Option<Flaw>,
}

/// One seed's.
#[derive(Debug)]
pub struct World<'a> {
    /// Kafka and the store.
    pub stack: &'a Stack,
    /// Topics of its own.
    pub topics: TopicNames,
    /// A keyspace of its own.
    pub keyspace: String,
    /// Its consumer group.
    pub group: String,
    /// Where ingest listens.
    pub endpoint: Endpoint,
    /// What happens.
    pub history: Arc<History>,
    transaction_timeout: Duration,
    folder: PathBuf,
    programs: &'a Programs,
    ingest: Keeper,
    processors: Vec<Keeper>,
}

impl<'a> World<'a> {
    /// Makes topics and keyspace and starts the services, which log into `folder`.
    ///
    /// # Errors
    /// When something cannot be made or started.
    pub async fn begin(stack: &'a Stack, programs: &'a Programs, plan: &Plan, folder: &Path) -> Result<Self> {
        // A world that was violated leaves its topics, and another flaw is played with the same seeds.
        let name = match programs.flaw {
            None => format!("seed_{}", plan.seed),
            Some(flaw) => format!("seed_{}_{flaw}", plan.seed).replace('-', "_"),
        };
        let topics = TopicNames::with_suffix(&format!("-{name}"));
        let keyspace = format!("chaos_{name}");
        stack.create_topics(&topics, PARTITIONS).await?;
        stack.create_keyspace(&keyspace).await?;
        let history = Arc::new(History::begin());
        let group = format!("chaos-{name}");
        let (grpc, admin) = (address()?, address()?);
        let mut settings = vec![format!("grpc.listen={grpc}"), format!("admin.listen={admin}")];
        settings.extend(common(&stack.linked_servers(), &topics));
        let ready = Probe::Http { url: format!("http://{admin}/readyz") };
        let launch = launch("ingest", &programs.ingest, folder, settings, programs).ready_when(ready);
        let ingest = Keeper::keep(launch, &Service::Ingest.to_string(), Vec::new(), history.clone());
        let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(2));
        let (folder, transaction_timeout) = (folder.to_owned(), plan.transaction_timeout);
        let mut world = Self {
            stack,
            topics,
            keyspace,
            group,
            endpoint,
            history,
            transaction_timeout,
            folder,
            programs,
            ingest,
            processors: Vec::new(),
        };
        for (number, mishaps) in plan.mishaps.iter().enumerate().take(PROCESSORS) {
            let launch = world.processor(&format!("processor-{number}"), &instance(number))?;
            let name = Service::Processor(number).to_string();
            world.processors.push(Keeper::keep(launch, &name, mishaps.clone(), world.history.clone()));
        }
        Ok(world)
    }

    /// What keeps a service alive.
    pub fn keeper(&self, service: Service) -> &Keeper {
        match service {
            Service::Ingest => &self.ingest,
            Service::Processor(number) => &self.processors[number],
        }
    }

    /// Another process of processor `number`, with its identity.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn twin(&self, number: usize) -> Result<Process> {
        Ok(Process::launch(self.processor(&format!("processor-{number}-twin"), &instance(number))?)?)
    }

    /// A processor that the group did not have.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn guest(&self) -> Result<Process> {
        Ok(Process::launch(self.processor("processor-guest", "guest")?)?)
    }

    /// Ends the services in good order.
    ///
    /// # Errors
    /// When one could not be started or ended.
    pub async fn end(self) -> Result<()> {
        for keeper in self.processors {
            keeper.stop().await?;
        }
        self.ingest.stop().await
    }

    fn processor(&self, log: &str, instance: &str) -> Result<Launch> {
        let mut settings = common(&self.stack.linked_servers(), &self.topics);
        settings.extend([
            format!("admin.listen={}", address()?),
            format!("cql.contact_points={}", self.stack.cql_contact()),
            format!("cql.keyspace={}", self.keyspace),
            "cql.consistency=one".to_owned(),
            format!("group.id={}", self.group),
            format!("group.instance={instance}"),
            // Short: faults are to outlast them.
            "group.session_timeout=6s".to_owned(),
            format!("group.transaction_timeout={}s", self.transaction_timeout.as_secs()),
            "group.workers=1".to_owned(),
            // Many small transactions have many edges.
            "batch.max_records=60".to_owned(),
            format!("source.topics={}", self.topics.packets),
        ]);
        Ok(launch(log, &self.programs.processor, &self.folder, settings, self.programs))
    }
}

fn instance(number: usize) -> String {
    format!("p{number}")
}

fn address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

fn launch(log: &str, program: &Path, folder: &Path, settings: Vec<String>, programs: &Programs) -> Launch {
    let human = "telemetry.log_format=human".to_owned();
    let args = settings.into_iter().chain([human]).flat_map(|setting| ["--set".to_owned(), setting]);
    let flaw = programs.flaw.iter().map(|flaw| (flaw::VARIABLE, flaw.to_string()));
    Launch::new(log, program, folder).args(args).envs(flaw)
}
