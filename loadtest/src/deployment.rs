//! A deployment that is there: where it is reached.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use coderelay_devstack::of_region;
use coderelay_schemas::cql;
use coderelay_schemas::topics::TopicNames;

use crate::pipeline::{Pipeline, Region};
use crate::resources::Watched;

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
    /// The topics that the processor reads: its own region's, and those that are mirrored to it.
    pub sources: Vec<String>,
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
    /// The regions of a deployment that has several. Each is reached by the variables with its name behind, as `infra/dev up --regions
    /// 2` writes them: `INGEST_ENDPOINT_US_EAST`, `KAFKA_BOOTSTRAP_US_EAST`, `CQL_CONTACT_US_EAST`, …
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    region: Vec<String>,
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
    ///
    /// # Errors
    /// When a region's variables are not there.
    pub fn existing(&self) -> Result<Option<Pipeline>> {
        if self.devstack || (self.endpoint.is_none() && self.region.is_empty()) {
            return Ok(None);
        }
        let regions = if self.region.is_empty() {
            vec![Region { name: None, endpoints: self.endpoints(), own: None }]
        } else {
            self.region.iter().map(|name| self.region(name)).collect::<Result<_>>()?
        };
        Ok(Some(Pipeline { regions, watched: self.watch.clone() }))
    }

    fn endpoints(&self) -> Endpoints {
        let topics = TopicNames::with_suffix(&self.topic_suffix);
        Endpoints {
            kafka: self.bootstrap_servers.clone(),
            cql: self.cql.clone(),
            keyspace: self.keyspace.clone(),
            ingest: self.endpoint.as_deref().map(url).unwrap_or_default(),
            ingest_admin: url(&self.ingest_admin),
            processor_admin: url(&self.processor_admin),
            sources: vec![topics.packets.clone()],
            topics,
            group: self.group.clone(),
        }
    }

    fn region(&self, name: &str) -> Result<Region> {
        let variable = |variable: &str| {
            let variable = of_region(variable, name);
            std::env::var(&variable)
                .with_context(|| format!("region {name} needs {variable}; `infra/dev up --regions 2` writes it"))
        };
        let mut endpoints = Endpoints {
            kafka: variable("KAFKA_BOOTSTRAP")?,
            cql: variable("CQL_CONTACT")?,
            ingest: url(&variable("INGEST_ENDPOINT")?),
            ingest_admin: url(&variable("INGEST_ADMIN")?),
            processor_admin: url(&variable("PROCESSOR_ADMIN")?),
            ..self.endpoints()
        };
        let others = self.region.iter().filter(|other| *other != name);
        endpoints.sources.extend(others.map(|other| format!("{other}.{}", endpoints.topics.packets)));
        Ok(Region { name: Some(name.to_owned()), endpoints, own: None })
    }

    /// Folder of the services' programs.
    pub fn bin(&self) -> Option<&Path> {
        self.bin.as_deref()
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
