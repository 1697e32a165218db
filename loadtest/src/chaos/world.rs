//! What one seed is played in: topics, keyspaces and services of its own, on servers that several seeds share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use coderelay_devstack::{Launch, MirrorMaker, Process, Regions, Stack};
use coderelay_runtime::flaw::Flaw;
use coderelay_schemas::topics::TopicNames;

use super::fault::Service;
use super::history::History;
use super::keeper::Keeper;
use super::plan::{PARTITIONS, PROCESSORS, Plan};
use super::region::{Identity, Region};
use crate::pipeline::{Servers, remove, remove_keyspace};

/// Where groups' offsets are, which transactions commit, too.
const OFFSETS: &str = "__consumer_offsets";

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Ingest.
    pub ingest: PathBuf,
    /// The processor, built with its failpoints.
    pub processor: PathBuf,
    /// The operator's tool.
    pub relayctl: PathBuf,
    /// A deliberate flaw that either of them is to have, if it was built with any.
    pub flaw: Option<Flaw>,
}

/// One seed's.
#[derive(Debug)]
pub struct World<'a> {
    /// One, or several that mirror each other.
    pub regions: Vec<Region<'a>>,
    /// What happens.
    pub history: Arc<History>,
    /// Topics of its own, in every region.
    pub topics: TopicNames,
    /// A keyspace of its own, in every region.
    pub keyspace: String,
    servers: &'a Servers,
    ingests: Vec<Keeper>,
    processors: Vec<Keeper>,
}

impl<'a> World<'a> {
    /// Makes topics and, unless that is to be later, keyspaces, and starts the services, which log into `folder`. The plan may have been
    /// played on these servers before: this is its `attempt`, counted from 0.
    ///
    /// # Errors
    /// When something cannot be made or started.
    pub async fn begin(
        servers: &'a Servers,
        programs: &'a Programs,
        plan: &Plan,
        attempt: u32,
        folder: &Path,
    ) -> Result<Self> {
        // A world that was violated leaves its topics, and another flaw is played with the same seeds.
        let mut name = vec!["seed".to_owned(), plan.seed.to_string()];
        name.extend(programs.flaw.map(|flaw| flaw.to_string().replace('-', "_")));
        name.extend((attempt > 0).then(|| format!("again_{attempt}")));
        let name = name.join("_");
        let topic_suffix = format!("-{name}");
        let topics = TopicNames::with_suffix(&topic_suffix);
        let (keyspace, history) = (format!("chaos_{name}"), Arc::new(History::begin()));
        let identity = Identity {
            topics: topics.clone(),
            topic_suffix,
            keyspace: keyspace.clone(),
            group: format!("chaos-{name}"),
            transaction_timeout: plan.transaction_timeout,
            room: plan.room,
            expires: plan.replay_at.is_some(),
            mirrored_in_order: !plan.fails_mirror_task(),
            folder: folder.to_owned(),
            programs,
        };
        for stack in servers.stacks() {
            stack.create_topics(&topics, PARTITIONS).await?;
            if plan.schema_at.is_none() {
                stack.create_keyspace(&keyspace).await?;
            }
        }
        let names: Vec<_> = servers.stacks().iter().filter_map(Stack::region).collect();
        let regions = servers.stacks().iter().map(|stack| {
            let others = names.iter().copied().filter(|name| Some(*name) != stack.region());
            Region::new(stack, others, identity.clone())
        });
        let regions: Vec<_> = regions.collect::<Result<_>>()?;
        let keep = |service: Service, launch, mishaps| {
            Keeper::keep(launch, &service.to_string(), mishaps, &plan.clocks, history.clone())
        };
        let ingests = regions
            .iter()
            .enumerate()
            .map(|(number, region)| keep(Service::Ingest(number), region.ingest(), Vec::new()));
        let ingests = ingests.collect();
        let mut processors = Vec::new();
        for (number, mishaps) in plan.mishaps.iter().enumerate().take(PROCESSORS) {
            let launch = processor(&regions, number, "")?;
            processors.push(keep(Service::Processor(number), launch, mishaps.clone()));
        }
        Ok(Self { regions, history, topics, keyspace, servers, ingests, processors })
    }

    /// Makes the keyspaces that there are not yet.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn create_schema(&self) -> Result<()> {
        for stack in self.servers.stacks() {
            stack.create_keyspace(&self.keyspace).await?;
        }
        Ok(())
    }

    /// What keeps a service alive.
    pub fn keeper(&self, service: Service) -> &Keeper {
        match service {
            Service::Ingest(number) => &self.ingests[number],
            Service::Processor(number) => &self.processors[number],
        }
    }

    /// Every service of region `region`.
    pub fn services(&self, region: usize) -> impl Iterator<Item = Service> {
        let processors = (0..PROCESSORS).filter(move |number| home(*number, self.regions.len()) == region);
        std::iter::once(Service::Ingest(region)).chain(processors.map(Service::Processor))
    }

    /// Another process of processor `number`, with its identity.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn twin(&self, number: usize) -> Result<Process> {
        Ok(Process::launch(processor(&self.regions, number, "-twin")?)?)
    }

    /// A processor that the group of region `region` did not have.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn guest(&self, region: usize) -> Result<Process> {
        Ok(Process::launch(self.regions[region].processor("processor-guest", "guest")?)?)
    }

    /// The broker of this number, counted through all regions.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn broker(&self, number: usize) -> &Process {
        let mut brokers = self.servers.stacks().iter().flat_map(Stack::brokers);
        brokers.nth(number).unwrap_or_else(|| panic!("there is no broker {number}"))
    }

    /// Kafka and the stores.
    pub fn stacks(&self) -> &'a [Stack] {
        self.servers.stacks()
    }

    /// Transactions that a lone broker has left open for ever in what the processors write or commit (KAFKA-5202). Several brokers are
    /// not known to: nothing excuses a world that does not come to rest there.
    ///
    /// # Errors
    /// When a cluster does not tell.
    pub async fn hanging_transactions(&self) -> Result<Vec<String>> {
        let TopicNames { deduped, ledger, dlq, .. } = &self.topics;
        let mut found = Vec::new();
        for stack in self.stacks().iter().filter(|stack| stack.brokers().len() == 1) {
            let hanging = stack.hanging_transactions(&[deduped, ledger, dlq, OFFSETS]).await?;
            found.extend(hanging.iter().map(|transaction| stack.process_name(&transaction.to_string())));
        }
        Ok(found)
    }

    /// What mirrors the regions.
    ///
    /// # Errors
    /// If there is one only.
    pub fn mirror(&self) -> Result<&'a MirrorMaker> {
        self.servers.mirror().context("one region is not mirrored")
    }

    /// The same, and what connects them.
    ///
    /// # Errors
    /// If there is one only.
    pub fn link(&self) -> Result<&'a Regions> {
        self.servers.regions().context("one region has no link")
    }

    /// Ends the services in good order.
    ///
    /// # Errors
    /// When one could not be started or ended.
    pub async fn end(self) -> Result<()> {
        for keeper in self.processors.into_iter().chain(self.ingests) {
            keeper.stop().await?;
        }
        Ok(())
    }
}

/// Topics and keyspaces of a world that has ended. Of mirrored regions the topics stay: the mirror would make its copies anew.
///
/// # Errors
/// When they cannot be removed.
pub async fn clear(servers: &Servers, topics: &TopicNames, keyspace: &str) -> Result<()> {
    for stack in servers.stacks() {
        match stack.region() {
            None => remove(&stack.bootstrap_servers(), &stack.cql_contact(), topics, keyspace).await?,
            Some(_) => remove_keyspace(&stack.cql_contact(), keyspace).await?,
        }
    }
    Ok(())
}

fn home(number: usize, regions: usize) -> usize {
    number % regions
}

fn processor(regions: &[Region<'_>], number: usize, suffix: &str) -> Result<Launch> {
    regions[home(number, regions.len())].processor(&format!("processor-{number}{suffix}"), &format!("p{number}"))
}
