//! How a node is asked whether it can do its work. An open port proves little: a broker listens long before it can
//! serve a transaction.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, SystemTime};

use openssl::error::ErrorStack;
use openssl::ssl::{SslContext, SslMethod, SslVerifyMode};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use scylla::client::PoolSize;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::direction::Direction;
use crate::security::Credentials;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often `MirrorMaker` sends a heartbeat (`emit.heartbeats.interval.seconds`).
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The question that a node must answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// None: it is ready as soon as it runs.
    Running,
    /// The broker with this id answers at this address, is in sync wherever it holds a replica, and the cluster's
    /// transaction and group coordinators answer.
    Kafka {
        /// `host:port` of this broker.
        address: String,
        /// Its `node.id`.
        id: i32,
        /// Who asks, where a password is asked for.
        credentials: Option<Credentials>,
    },
    /// The node answers a CQL query.
    Cql {
        /// `host:port` of its native transport.
        address: String,
        /// Who asks, where a password is asked for.
        credentials: Option<Credentials>,
    },
    /// Every task of the mirror runs, and a heartbeat that was sent after the question arrives in each direction.
    Mirror {
        /// All of them.
        directions: Vec<Direction>,
    },
    /// The URL answers 200.
    Http {
        /// For example `http://127.0.0.1:9464/readyz`.
        url: String,
    },
}

impl Probe {
    /// Asks once.
    ///
    /// # Errors
    /// The reason why it is not ready.
    pub async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Running => Ok(()),
            Self::Kafka { address, id, credentials } => {
                connect(address).await?;
                let (client, id) = (quiet_client(address, credentials.as_ref()), *id);
                let asked = tokio::task::spawn_blocking(move || ask_broker(client, id));
                asked.await.map_err(|error| error.to_string())?
            }
            Self::Cql { address, credentials } => {
                connect(address).await?;
                let session = cql_session(address, credentials.as_ref()).await?;
                let query = session.query_unpaged("SELECT release_version FROM system.local", ());
                query.await.map(|_| ()).map_err(|error| error.to_string())
            }
            Self::Mirror { directions } => {
                futures::future::try_join_all(directions.iter().map(ask_mirror)).await.map(|_| ())
            }
            Self::Http { url } => ask_http(url).await,
        }
    }
}

/// Cheaper and quieter than a client that finds nobody.
async fn connect(address: &str) -> Result<(), String> {
    let connection = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
    match connection {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no connection after {PATIENCE:?}")),
    }
}

/// A heartbeat that is under way when the question is asked may come from a process that was killed since: the answer is the next one.
async fn ask_mirror(direction: &Direction) -> Result<(), String> {
    let asked = SystemTime::now();
    loop {
        let observed = direction.clone();
        let observation = tokio::task::spawn_blocking(move || observed.observe()).await;
        let observation = observation.map_err(|error| error.to_string())?;
        let answer = observation.and_then(|seen| seen.moves_since(asked));
        match answer {
            Err(reason) if asked.elapsed().is_ok_and(|waited| waited > PATIENCE) => {
                return Err(format!("{direction}: {reason}"));
            }
            Err(_) => tokio::time::sleep(HEARTBEAT_INTERVAL / 2).await,
            Ok(()) => return Ok(()),
        }
    }
}

async fn ask_http(url: &str) -> Result<(), String> {
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().map_err(|error| error.to_string())?;
    let response = client.get(url).send().await.map_err(|error| error.to_string())?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.text().await.unwrap_or_default();
    Err(format!("{url} answers {status}: {}", body.trim()))
}

fn ask_broker(client: ClientConfig, id: i32) -> Result<(), String> {
    let producer: BaseProducer = client
        .clone()
        .set("transactional.id", format!("devstack.readiness.{id}"))
        .create()
        .map_err(|error| error.to_string())?;
    let metadata = producer.client().fetch_metadata(None, PATIENCE).map_err(|error| error.to_string())?;
    broker_in_sync(&metadata, id)?;
    producer.init_transactions(PATIENCE).map_err(|error| format!("transaction coordinator: {error}"))?;
    ask_group_coordinator(client).map_err(|error| format!("group coordinator: {error}"))
}

fn broker_in_sync(metadata: &Metadata, id: i32) -> Result<(), String> {
    if !metadata.brokers().iter().any(|broker| broker.id() == id) {
        return Err(format!("broker {id} is not registered or fenced"));
    }
    for topic in metadata.topics() {
        for partition in topic.partitions().iter().filter(|partition| partition.replicas().contains(&id)) {
            if partition.leader() < 0 || !partition.isr().contains(&id) {
                return Err(format!("broker {id} is not in sync for {}-{}", topic.name(), partition.id()));
            }
        }
    }
    Ok(())
}

/// Asking for any group's offsets makes the broker create the offsets topic and load the group's coordinator.
fn ask_group_coordinator(mut client: ClientConfig) -> Result<(), KafkaError> {
    let consumer: BaseConsumer = client.set("group.id", "devstack.readiness").create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset("devstack.readiness", 0, Offset::Invalid)?;
    consumer.committed_offsets(partitions, PATIENCE).map(|_| ())
}

/// A client that keeps its complaints about a broker that is not there yet to itself.
pub(crate) fn quiet_client(bootstrap_servers: &str, credentials: Option<&Credentials>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap_servers)
        .set("client.id", "devstack")
        .set("reconnect.backoff.max.ms", "500")
        .set_log_level(RDKafkaLogLevel::Emerg);
    if let Some(credentials) = credentials {
        credentials.apply(&mut config);
    }
    config
}

/// A session with one connection.
pub(crate) async fn cql_session(address: &str, credentials: Option<&Credentials>) -> Result<Session, String> {
    let mut builder = SessionBuilder::new()
        .known_node(address)
        .pool_size(PoolSize::PerHost(NonZeroUsize::MIN))
        .connection_timeout(PATIENCE);
    if let Some(Credentials { ca, username, password }) = credentials {
        let tls = tls_context(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
        builder = builder.user(username, password).tls_context(Some(tls));
    }
    // Boxed, because the driver's future is large and would make each that contains it so.
    Box::pin(builder.build()).await.map_err(|error| error.to_string())
}

fn tls_context(ca: &Path) -> Result<SslContext, ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::tls_client())?;
    builder.set_ca_file(ca)?;
    builder.set_verify(SslVerifyMode::PEER);
    Ok(builder.build())
}
