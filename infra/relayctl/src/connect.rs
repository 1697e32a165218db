//! Where the deployment is, and clients for its parts. Nothing is connected before a verb asks for it.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use coderelay_schemas::topics::TopicNames;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tonic::transport::{Channel, Endpoint};

use crate::tls::Tls;

/// How long a single request to Kafka, CQL or an admin port may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A librdkafka property given as `-X key=value`, kcat's convention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Property {
    key: String,
    value: String,
}

impl FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("expected key=value".to_owned()),
        }
    }
}

/// Addresses of one deployment, from flags or the environment.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// gRPC address of ingest (repeatable, or comma-separated: `push` goes on at the next when one fails)
    #[arg(
        long,
        visible_alias = "endpoint",
        global = true,
        env = "INGEST_ENDPOINT",
        hide_env_values = true,
        default_value = "http://localhost:50051",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub(crate) ingest: Vec<String>,
    /// Kafka bootstrap servers, comma-separated
    #[arg(
        long,
        global = true,
        env = "KAFKA_BOOTSTRAP",
        hide_env_values = true,
        default_value = "localhost:9092",
        value_name = "HOST:PORT,…"
    )]
    pub(crate) kafka: String,
    /// ScyllaDB or Cassandra contact points, comma-separated
    #[arg(
        long,
        global = true,
        env = "CQL_CONTACT",
        hide_env_values = true,
        default_value = "localhost:9042",
        value_name = "HOST:PORT,…"
    )]
    pub(crate) cql: String,
    /// CQL keyspace
    #[arg(long, global = true, env = "CQL_KEYSPACE", hide_env_values = true, default_value = coderelay_schemas::cql::KEYSPACE)]
    pub(crate) keyspace: String,
    #[arg(
        long,
        help = "CQL user, where the cluster asks for one; the password comes from CQL_PASSWORD",
        global = true,
        env = "CQL_USER",
        hide_env_values = true,
        value_name = "USER"
    )]
    pub(crate) cql_user: Option<String>,
    /// `CQL_PASSWORD`, only ever from the environment, so that no process list shows it
    #[arg(skip = std::env::var("CQL_PASSWORD").ok())]
    pub(crate) cql_password: Option<String>,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Admin address of ingest
    #[arg(
        long,
        global = true,
        env = "INGEST_ADMIN",
        hide_env_values = true,
        default_value = "http://localhost:9464",
        value_name = "URL"
    )]
    pub(crate) ingest_admin: String,
    /// Admin address of the processor
    #[arg(
        long,
        global = true,
        env = "PROCESSOR_ADMIN",
        hide_env_values = true,
        default_value = "http://localhost:9465",
        value_name = "URL"
    )]
    pub(crate) processor_admin: String,
    /// Suffix of every topic name, for deployments that share a Kafka cluster
    #[arg(
        long,
        global = true,
        env = "CODERELAY_TOPIC_SUFFIX",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(crate) topic_suffix: String,
    /// librdkafka property (repeatable), as in kcat
    #[arg(short = 'X', global = true, value_name = "KEY=VALUE")]
    pub(crate) properties: Vec<Property>,
}

impl Connection {
    /// The deployment's topic names.
    pub(crate) fn topics(&self) -> TopicNames {
        if self.topic_suffix.is_empty() { TopicNames::default() } else { TopicNames::with_suffix(&self.topic_suffix) }
    }

    /// Settings every Kafka client of this tool has in common.
    pub(crate) fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka).set("client.id", "relayctl");
        for Property { key, value } in &self.properties {
            config.set(key, value);
        }
        config
    }

    /// A consumer that assigns itself partitions and commits nothing. `group` only names it, or the group whose committed
    /// offsets are asked for; it never joins.
    ///
    /// `read_committed`, and end-of-partition events, which for such a consumer mean the last stable offset.
    pub(crate) fn consumer(&self, group: &str) -> anyhow::Result<BaseConsumer> {
        let mut config = self.kafka();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100");
        let consumer: BaseConsumer = config.create().context("Kafka client settings")?;
        consumer.fetch_metadata(None, REQUEST_TIMEOUT).with_context(|| self.kafka_unreachable())?;
        Ok(consumer)
    }

    pub(crate) fn kafka_unreachable(&self) -> String {
        format!("Kafka at {} does not answer (set --kafka or KAFKA_BOOTSTRAP)", self.kafka)
    }

    /// A CQL session; statements name the keyspace themselves.
    pub(crate) async fn cql(&self) -> anyhow::Result<Session> {
        let mut builder = SessionBuilder::new()
            .connection_timeout(REQUEST_TIMEOUT)
            .known_nodes(contacts(&self.cql))
            .tls_context(self.tls.of_store()?);
        if let Some(user) = &self.cql_user {
            builder = builder.user(user, self.cql_password.as_deref().unwrap_or_default());
        }
        builder.build().await.with_context(|| format!("CQL at {} does not answer (set --cql or CQL_CONTACT)", self.cql))
    }

    /// A channel to each ingest, with its address. They connect with the first call and again after every loss.
    pub(crate) fn channels(&self) -> anyhow::Result<Vec<(String, Channel)>> {
        self.ingest.iter().map(|address| Ok((address.clone(), self.channel(address)?))).collect()
    }

    fn channel(&self, address: &str) -> anyhow::Result<Channel> {
        let url = url(address);
        let mut endpoint = Endpoint::from_shared(url.clone()).with_context(|| format!("ingest address {url}"))?;
        if url.starts_with("https:") {
            endpoint = endpoint.tls_config(self.tls.of_ingest()?).with_context(|| format!("TLS with {url}"))?;
        }
        Ok(endpoint
            .user_agent(concat!("relayctl/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .connect_lazy())
    }
}

/// `host:port` means plain HTTP.
pub(crate) fn url(address: &str) -> String {
    let address = address.trim();
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

fn contacts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|contact| !contact.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_keeps_everything_after_the_first_equals_sign() {
        let property: Property = "sasl.jaas.config=a=b".parse().unwrap();
        assert_eq!((property.key.as_str(), property.value.as_str()), ("sasl.jaas.config", "a=b"));
        assert!("novalue".parse::<Property>().is_err());
        assert!("=x".parse::<Property>().is_err());
    }

    #[test]
    fn addresses_may_leave_out_the_scheme() {
        assert_eq!(url("localhost:50051"), "http://localhost:50051");
        assert_eq!(url("https://ingest.example"), "https://ingest.example");
        assert_eq!(contacts("a:1, b:2,").collect::<Vec<_>>(), ["a:1", "b:2"]);
    }
}
