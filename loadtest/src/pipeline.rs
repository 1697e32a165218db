//! What a run loads, region by region, and the parts of it that a run may treat badly.

use std::sync::Arc;

use anyhow::{Context, Result};
use coderelay_devstack::{MirrorMaker, Regions, Stack};
use coderelay_schemas::topics::TopicNames;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use scylla::client::session_builder::SessionBuilder;

use crate::deployment::Endpoints;
use crate::resources::Watched;
use crate::service::{GRACE, Service};

/// What a run loads.
#[derive(Debug)]
pub struct Pipeline {
    /// One, or several that mirror each other.
    pub regions: Vec<Region>,
    /// Whose CPU and memory are reported.
    pub watched: Vec<Watched>,
}

/// A region of it.
#[derive(Debug)]
pub struct Region {
    /// Its name, where there are several.
    pub name: Option<String>,
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// The parts, if they are the run's own.
    pub own: Option<Own>,
}

/// The parts of a region that a run may start, stop and treat badly.
#[derive(Clone, Debug)]
pub struct Own {
    /// gRPC to Kafka.
    pub ingest: Service,
    /// Kafka to CQL and Kafka.
    pub processor: Service,
    /// All regions' servers.
    pub(crate) servers: Arc<Servers>,
    /// Which of them are this region's.
    pub(crate) region: usize,
}

/// Kafka and Cassandra, once or in each of two regions.
#[derive(Debug)]
pub enum Servers {
    /// Once.
    Stack(Box<Stack>),
    /// In each of two regions.
    Regions(Box<Regions>),
}

impl Servers {
    /// Of every region.
    pub fn stacks(&self) -> &[Stack] {
        match self {
            Self::Stack(stack) => std::slice::from_ref(stack),
            Self::Regions(regions) => regions.stacks(),
        }
    }

    /// Both, if there are two.
    pub fn regions(&self) -> Option<&Regions> {
        match self {
            Self::Stack(_) => None,
            Self::Regions(regions) => Some(regions),
        }
    }

    /// What mirrors them, if there are two.
    pub fn mirror(&self) -> Option<&MirrorMaker> {
        self.regions().map(Regions::mirror)
    }
}

impl Own {
    /// The region's Kafka and Cassandra.
    pub fn stack(&self) -> &Stack {
        &self.servers.stacks()[self.region]
    }

    /// Kills all of the region at once.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub(crate) async fn kill(&self) -> Result<()> {
        let services = [&self.ingest, &self.processor].map(|service| async {
            if let Some(process) = service.process() {
                process.kill().await?;
            }
            anyhow::Ok(())
        });
        let stack = async { Ok(self.stack().kill().await?) };
        tokio::try_join!(stack, futures::future::try_join_all(services)).map(|_| ())
    }

    /// Starts all of the region with what its disks hold, and waits until it is ready.
    ///
    /// # Errors
    /// If a part does not come back.
    pub(crate) async fn restart(&self) -> Result<()> {
        self.stack().restart().await?;
        tokio::try_join!(self.ingest.ready(), self.processor.ready()).map(|_| ())
    }

    /// Its processes, with the region's name before each where there are several.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let name = |name: &str| self.stack().process_name(name);
        let service = |service: &Service| {
            let (name, service) = (name(service.name()), service.clone());
            Watched::new(&name, move || service.pid())
        };
        let (kafka, cassandra) = (self.clone(), self.clone());
        vec![
            service(&self.ingest),
            service(&self.processor),
            Watched::new(&name("kafka"), move || Some(kafka.stack().broker(0).pid().cast_signed())),
            Watched::new(&name("cassandra"), move || Some(cassandra.stack().cql().pid().cast_signed())),
        ]
    }
}

impl Pipeline {
    /// Where it is reached; of several regions, the first.
    pub fn endpoints(&self) -> &Endpoints {
        &self.regions[0].endpoints
    }

    /// The parts; of several regions, the first's.
    ///
    /// # Errors
    /// If they are not the run's own.
    pub fn own(&self) -> Result<&Own> {
        self.regions[0].own.as_ref().context("this needs a stack of its own: --devstack")
    }

    /// Whether the run started it.
    pub fn is_own(&self) -> bool {
        self.regions[0].own.is_some()
    }

    /// Stops services of its own in good order. Whatever is amiss is told in the answer.
    pub async fn stop(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for own in self.regions.iter().filter_map(|region| region.own.as_ref()) {
            for service in [&own.ingest, &own.processor] {
                if let Err(error) = service.stop().await {
                    notes.push(format!("{error:#}"));
                }
            }
        }
        notes
    }

    /// The same, and removes topics and keyspace.
    pub async fn close(&self) -> Vec<String> {
        let mut notes = self.stop().await;
        for region in &self.regions {
            let Some(own) = &region.own else { continue };
            // Mirrored topics would be made anew by the mirror; their brokers serve one run only.
            if own.servers.mirror().is_some() {
                continue;
            }
            let Endpoints { kafka, cql, topics, keyspace, .. } = &region.endpoints;
            if let Err(error) = remove(kafka, cql, topics, keyspace).await {
                notes.push(format!("topics or keyspace were not removed: {error:#}"));
            }
        }
        notes
    }
}

/// Old segments and tables would be compacted while the next run is measured.
pub(crate) async fn remove(kafka: &str, cql: &str, topics: &TopicNames, keyspace: &str) -> Result<()> {
    remove_topics(kafka, topics).await?;
    remove_keyspace(cql, keyspace).await
}

async fn remove_topics(kafka: &str, topics: &TopicNames) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", kafka).create()?;
    let specs = topics.specs();
    let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let options = AdminOptions::new().operation_timeout(Some(GRACE)).request_timeout(Some(GRACE));
    for deleted in admin.delete_topics(&names, &options).await? {
        deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

pub(crate) async fn remove_keyspace(cql: &str, keyspace: &str) -> Result<()> {
    let session = Box::pin(SessionBuilder::new().known_node(cql).build()).await?;
    session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ()).await?;
    Ok(())
}
