//! The Kafka cluster, administered: topics and their settings.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;

use crate::connect::{Connection, REQUEST_TIMEOUT};

/// A topic on the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Existing {
    pub(crate) partitions: i32,
    pub(crate) replication_factor: i32,
    pub(crate) config: BTreeMap<String, Setting>,
}

/// One topic setting; `own` where it was set on the topic itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) value: String,
    pub(crate) own: bool,
}

/// A topic to create.
pub(crate) struct Creation<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    pub(crate) settings: Vec<(&'a str, String)>,
}

/// The Kafka cluster, administered.
pub(crate) struct Cluster {
    admin: AdminClient<DefaultClientContext>,
    options: AdminOptions,
    unreachable: String,
}

impl Cluster {
    pub(crate) fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let admin = connection.kafka().create().context("Kafka client settings")?;
        let options =
            AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
        Ok(Self { admin, options, unreachable: connection.kafka_unreachable() })
    }

    /// Every topic but Kafka's own.
    pub(crate) async fn topics(&self) -> anyhow::Result<BTreeMap<String, Existing>> {
        let metadata = tokio::task::block_in_place(|| self.admin.inner().fetch_metadata(None, REQUEST_TIMEOUT))
            .with_context(|| self.unreachable.clone())?;
        let mut topics = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| !topic.name().starts_with("__")) {
            let replicas = topic.partitions().first().map_or(0, |partition| partition.replicas().len());
            let existing = Existing {
                partitions: topic.partitions().len() as i32,
                replication_factor: replicas as i32,
                config: BTreeMap::new(),
            };
            topics.insert(topic.name().to_owned(), existing);
        }
        let resources: Vec<_> = topics.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described = self.admin.describe_configs(&resources, &self.options).await?;
        for resource in described {
            let resource = resource.map_err(|code| anyhow!("topic settings: {code}"))?;
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { continue };
            let Some(topic) = topics.get_mut(name) else { continue };
            for entry in resource.entries {
                let own = entry.source == ConfigSource::DynamicTopic;
                topic.config.insert(entry.name, Setting { value: entry.value.unwrap_or_default(), own });
            }
        }
        Ok(topics)
    }

    /// Creates topics. `replication_factor` -1 is the brokers' default (KIP-464).
    pub(crate) async fn create(&self, topics: &[Creation<'_>], replication_factor: i32) -> anyhow::Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let topics: Vec<_> = topics
            .iter()
            .map(|Creation { name, partitions, settings }| {
                let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(replication_factor));
                settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        for result in self.admin.create_topics(&topics, &self.options).await? {
            if let Err((name, code)) = result {
                bail!("creating {name}: {code}");
            }
        }
        Ok(())
    }

    /// Sets settings of existing topics, by topic. `AlterConfigs` replaces a topic's own settings as a whole, so those that
    /// others set go along.
    pub(crate) async fn configure(
        &self,
        wanted: &BTreeMap<&str, Vec<(&str, &str)>>,
        existing: &BTreeMap<String, Existing>,
    ) -> anyhow::Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut altered = Vec::new();
        for (topic, settings) in wanted {
            let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
            let own =
                existing.get(*topic).into_iter().flat_map(|topic| &topic.config).filter(|(_, setting)| setting.own);
            alter.entries.extend(own.map(|(key, setting)| (key.as_str(), setting.value.as_str())));
            alter.entries.extend(settings.iter().copied());
            altered.push(alter);
        }
        for result in self.admin.alter_configs(&altered, &self.options).await? {
            if let Err((resource, code)) = result {
                bail!("configuring {resource:?}: {code}");
            }
        }
        Ok(())
    }
}
