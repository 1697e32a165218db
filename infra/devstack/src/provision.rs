//! The topics and the keyspace of a deployment, as `coderelay_schemas` describes them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coderelay_schemas::cql;
use coderelay_schemas::topics::{TopicNames, TopicSpec};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::MetadataTopic;

use crate::error::{Error, Result};
use crate::security::Credentials;
use crate::stack::Stack;

/// How long the brokers may take to create topics and to elect their leaders.
const PATIENCE: Duration = Duration::from_secs(30);
/// As Cassandra calls the one of a node that was told nothing.
const DATACENTER: &str = "datacenter1";

impl Stack {
    /// Creates the topics of `names` with so many partitions each, replicated three times where there are three brokers,
    /// and waits until every partition has a leader that answers for it. Topics that exist are left as they are.
    ///
    /// # Errors
    /// [`Error::Topic`] with the broker's reason.
    pub async fn create_topics(&self, names: &TopicNames, partitions: i32) -> Result<()> {
        let specs = names.specs();
        let settings: Vec<_> = specs.iter().map(TopicSpec::config).collect();
        let topics: Vec<NewTopic> = std::iter::zip(&specs, &settings)
            .map(|(spec, settings)| {
                let topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(self.replicas() as i32));
                settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
            })
            .collect();
        let admin: AdminClient<DefaultClientContext> = self.kafka_client().create()?;
        for created in admin.create_topics(&topics, &options()).await? {
            match created {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(Error::Topic { topic, reason: code.to_string() }),
            }
        }
        let names = specs.into_iter().map(|spec| spec.name).collect();
        let led = tokio::task::spawn_blocking(move || await_leaders(&admin, names));
        led.await.map_err(|error| Error::io("kafka")(error.into()))?
    }

    /// Creates the keyspace (one replica) and its table. What exists is left as it is.
    ///
    /// # Errors
    /// [`Error::Cql`] with the server's reason.
    ///
    /// # Panics
    /// If the stack was built without Cassandra.
    pub async fn create_keyspace(&self, name: &str) -> Result<()> {
        self.query([cql::create_keyspace(name, 1), cql::create_table(name)]).await
    }

    /// Has every row of keyspace `name` kept so often. More often than there are nodes, and the server refuses what asks for a quorum.
    ///
    /// # Errors
    /// [`Error::Cql`] with the server's reason. It may have done so nevertheless.
    ///
    /// # Panics
    /// If the stack was built without Cassandra.
    pub async fn replicate_keyspace(&self, name: &str, copies: u32) -> Result<()> {
        let replication = format!("{{'class': 'NetworkTopologyStrategy', '{DATACENTER}': {copies}}}");
        self.query([format!("ALTER KEYSPACE {name} WITH replication = {replication}")]).await
    }

    /// The configuration that topic `name` has of its own.
    ///
    /// # Errors
    /// [`Error::Topic`] with the broker's reason.
    pub async fn topic_config(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let admin: AdminClient<DefaultClientContext> = self.kafka_client().create()?;
        let mut described = admin.describe_configs(&[ResourceSpecifier::Topic(name)], &options()).await?;
        let described = described.pop().unwrap_or(Err(RDKafkaErrorCode::UnknownTopicOrPartition));
        let described = described.map_err(|code| Error::Topic { topic: name.to_owned(), reason: code.to_string() })?;
        let own = described.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        Ok(own.filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// Gives topic `name` the configuration `config`, and no other.
    ///
    /// # Errors
    /// [`Error::Topic`] with the broker's reason.
    pub async fn set_topic_config(&self, name: &str, config: &BTreeMap<String, String>) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.kafka_client().create()?;
        let altered = AlterConfig::new(ResourceSpecifier::Topic(name));
        let altered = config.iter().fold(altered, |altered, (key, value)| altered.set(key, value));
        for altered in admin.alter_configs([&altered], &options()).await? {
            altered.map_err(|(_, code)| Error::Topic { topic: name.to_owned(), reason: code.to_string() })?;
        }
        Ok(())
    }

    /// Creates the role of the stack's [`Credentials`](crate::Credentials), no superuser.
    pub(crate) async fn create_role(&self) -> Result<()> {
        let Some(Credentials { username, password, .. }) = self.credentials() else { return Ok(()) };
        let role = format!("CREATE ROLE IF NOT EXISTS {username} WITH LOGIN = true AND PASSWORD = '{password}'");
        self.query([role]).await
    }

    async fn query(&self, statements: impl IntoIterator<Item = String>) -> Result<()> {
        let session = self.cql_session().await?;
        for statement in statements {
            session.query_unpaged(statement, ()).await.map_err(|error| Error::Cql(error.to_string()))?;
        }
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// A created topic is known to the controller; the brokers learn of it a moment later, and until then clients are told that there is no
/// such topic, or that the broker does not lead its partitions.
fn await_leaders(admin: &AdminClient<DefaultClientContext>, names: Vec<String>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for name in names {
        while let Err(reason) = led(admin, &name) {
            if Instant::now() > deadline {
                return Err(Error::Topic { topic: name, reason });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Whether every partition has a leader that answers for it.
fn led(admin: &AdminClient<DefaultClientContext>, topic: &str) -> std::result::Result<(), String> {
    let client = admin.inner();
    let metadata = client.fetch_metadata(Some(topic), PATIENCE).map_err(|error| error.to_string())?;
    let partitions: Vec<_> = metadata.topics().iter().flat_map(MetadataTopic::partitions).collect();
    if partitions.is_empty() || partitions.iter().any(|partition| partition.leader() < 0) {
        return Err("its partitions have no leader".into());
    }
    for partition in partitions {
        client.fetch_watermarks(topic, partition.id(), PATIENCE).map_err(|error| error.to_string())?;
    }
    Ok(())
}
