//! `relayctl topics`: the topics as they are, as they should be, and the way from one to the other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use coderelay_schemas::topics::{TopicSpec, production};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use serde::Serialize;

use crate::connect::{Connection, REQUEST_TIMEOUT};
use crate::exit::Exit;
use crate::output::{Output, Row};
use crate::progress::remark;

/// Topics: list, compare with their specification, create
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TopicsCommand {
    /// Show the deployment's topics, mirrored ones included
    List,
    /// Show what apply would change; exit code 4 where there is something
    Diff(Wanted),
    /// Create missing topics and set settings that differ; partition counts are never changed
    Apply {
        #[command(flatten)]
        wanted: Wanted,
        /// Show the changes only
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where a deployment differs from the specification on purpose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Wanted {
    /// Partitions of every topic, for a deployment with another count than the specification's
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Copies of every partition of topics that are created [default: the broker's default]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "production")]
    replication_factor: Option<i32>,
    /// Create topics with production's replication: three copies, two of which must have a record
    #[arg(long)]
    production: bool,
}

impl Wanted {
    fn specs(&self, connection: &Connection) -> Vec<TopicSpec> {
        let mut specs = connection.topics().specs();
        if let Some(partitions) = self.partitions {
            for spec in &mut specs {
                spec.partitions = partitions;
            }
        }
        specs
    }
}

/// A topic on the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Existing {
    partitions: i32,
    replication_factor: i32,
    config: BTreeMap<String, Setting>,
}

/// One topic setting; `own` where it was set on the topic itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    value: String,
    own: bool,
}

/// One difference between specification and cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Change {
    topic: String,
    action: Action,
    /// `partitions` or the setting's name.
    setting: String,
    current: Option<String>,
    wanted: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Create,
    Configure,
    /// Cannot be done in place.
    Refuse,
}

impl Row for Change {
    const HEADER: &'static [&'static str] = &["topic", "action", "setting", "current", "wanted"];

    fn cells(&self) -> Vec<String> {
        let action = match self.action {
            Action::Create => "create",
            Action::Configure => "configure",
            Action::Refuse => "REFUSE",
        };
        let current = self.current.clone().unwrap_or_else(|| "-".to_owned());
        vec![self.topic.clone(), action.to_owned(), self.setting.clone(), current, self.wanted.clone()]
    }
}

/// A topic in `topics list`.
#[derive(Debug, Serialize)]
struct Listed {
    topic: String,
    exists: bool,
    partitions: i32,
    replication_factor: i32,
    cleanup_policy: String,
    retention: String,
    key: String,
    value: String,
}

impl Row for Listed {
    const HEADER: &'static [&'static str] =
        &["topic", "partitions", "replicas", "cleanup", "retention", "key", "value"];

    fn cells(&self) -> Vec<String> {
        let count = |count: i32| if self.exists { count.to_string() } else { "missing".to_owned() };
        vec![
            self.topic.clone(),
            count(self.partitions),
            count(self.replication_factor),
            self.cleanup_policy.clone(),
            self.retention.clone(),
            self.key.clone(),
            self.value.clone(),
        ]
    }
}

/// Runs the verb.
pub(crate) async fn run(command: TopicsCommand, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let cluster = Cluster::connect(connection)?;
    match command {
        TopicsCommand::List => {
            output.list(&list(&cluster.topics().await?, &connection.topics().specs()))?;
            Ok(Exit::Success)
        }
        TopicsCommand::Diff(wanted) => {
            let changes = plan(&wanted.specs(connection), &cluster.topics().await?);
            output.list(&changes)?;
            if changes.is_empty() {
                output.say("all topics are as specified")?;
                return Ok(Exit::Success);
            }
            explain(&changes);
            Ok(Exit::Partial)
        }
        TopicsCommand::Apply { wanted, dry_run } => apply(&cluster, &wanted, dry_run, connection, output).await,
    }
}

async fn apply(
    cluster: &Cluster,
    wanted: &Wanted,
    dry_run: bool,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let specs = wanted.specs(connection);
    let existing = cluster.topics().await?;
    let changes = plan(&specs, &existing);
    output.list(&changes)?;
    explain(&changes);
    if changes.is_empty() {
        output.say("all topics are as specified")?;
    }
    let refused = changes.iter().any(|change| change.action == Action::Refuse);
    if dry_run {
        output.say("dry run: nothing was changed")?;
    } else if refused {
        // Half a deployment with one count and half with another would break co-partitioning.
        remark("nothing was changed");
    } else {
        cluster.create(&specs, &changes, wanted).await?;
        cluster.configure(&changes, &existing).await?;
    }
    Ok(if refused { Exit::Failure } else { Exit::Success })
}

/// What to do about partition counts that differ.
fn explain(changes: &[Change]) {
    let refused: Vec<_> = changes.iter().filter(|change| change.action == Action::Refuse).collect();
    let Some(first) = refused.first() else { return };
    let current = first.current.as_deref().unwrap_or_default();
    let names: Vec<_> = refused.iter().map(|change| change.topic.as_str()).collect();
    remark(&format!(
        "the partition count of {} is not the wanted {}. It never changes in place: keys would move to other partitions, \
         and the ledger, the deduped topic and every co-partitioned reader rely on them staying. Keep the count \
         (--partitions {current}, the same for all topics of a deployment), or create topics of other names \
         (--topic-suffix), let the processor finish the old ones and switch producers and consumers over.",
        names.join(", "),
        first.wanted
    ));
}

/// The differences, topic by topic in the order of the specification.
fn plan(specs: &[TopicSpec], existing: &BTreeMap<String, Existing>) -> Vec<Change> {
    let mut changes = Vec::new();
    for spec in specs {
        let change = |action, setting: &str, current: Option<String>, wanted: String| Change {
            topic: spec.name.clone(),
            action,
            setting: setting.to_owned(),
            current,
            wanted,
        };
        let Some(topic) = existing.get(&spec.name) else {
            changes.push(change(Action::Create, "partitions", None, spec.partitions.to_string()));
            continue;
        };
        if topic.partitions != spec.partitions {
            let current = Some(topic.partitions.to_string());
            changes.push(change(Action::Refuse, "partitions", current, spec.partitions.to_string()));
        }
        for (name, wanted) in spec.config() {
            let current = topic.config.get(name).map(|setting| setting.value.clone());
            if current.as_ref() != Some(&wanted) {
                changes.push(change(Action::Configure, name, current, wanted));
            }
        }
    }
    changes
}

fn list(existing: &BTreeMap<String, Existing>, specs: &[TopicSpec]) -> Vec<Listed> {
    let row = |name: &str, spec: &TopicSpec| {
        let found = existing.get(name);
        let setting = |key: &str| found.and_then(|topic| topic.config.get(key)).map(|setting| setting.value.clone());
        let retention = setting("retention.ms").and_then(|millis| millis.parse().ok()).map(Duration::from_millis);
        Listed {
            topic: name.to_owned(),
            exists: found.is_some(),
            partitions: found.map_or(0, |topic| topic.partitions),
            replication_factor: found.map_or(0, |topic| topic.replication_factor),
            cleanup_policy: setting("cleanup.policy").unwrap_or_else(|| spec.cleanup_policy.clone()),
            retention: humantime::format_duration(retention.unwrap_or(spec.retention)).to_string(),
            key: spec.key.clone(),
            value: spec.value.clone(),
        }
    };
    let mut rows: Vec<_> = specs.iter().map(|spec| row(&spec.name, spec)).collect();
    for spec in specs.iter().filter(|spec| spec.mirrored) {
        let mirrors = existing.keys().filter(|name| name.strip_suffix(&spec.name).is_some_and(|r| r.ends_with('.')));
        rows.extend(mirrors.map(|name| row(name, spec)));
    }
    rows
}

/// The Kafka cluster, administered.
struct Cluster {
    admin: AdminClient<DefaultClientContext>,
    options: AdminOptions,
    unreachable: String,
}

impl Cluster {
    fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let admin = connection.kafka().create().context("Kafka client settings")?;
        let options =
            AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
        Ok(Self { admin, options, unreachable: connection.kafka_unreachable() })
    }

    async fn topics(&self) -> anyhow::Result<BTreeMap<String, Existing>> {
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
            let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier else { continue };
            let Some(topic) = topics.get_mut(name) else { continue };
            for entry in resource.entries {
                let own = entry.source == ConfigSource::DynamicTopic;
                topic.config.insert(entry.name, Setting { value: entry.value.unwrap_or_default(), own });
            }
        }
        Ok(topics)
    }

    async fn create(&self, specs: &[TopicSpec], changes: &[Change], wanted: &Wanted) -> anyhow::Result<()> {
        let missing = |spec: &&TopicSpec| {
            changes.iter().any(|change| change.action == Action::Create && change.topic == spec.name)
        };
        let replication = production();
        let (factor, insync) = if wanted.production {
            (replication.replication_factor, Some(replication.min_insync_replicas.to_string()))
        } else {
            // -1: the broker's default.replication.factor (KIP-464)
            (wanted.replication_factor.unwrap_or(-1), None)
        };
        let configs: Vec<_> = specs.iter().filter(missing).map(|spec| (spec, spec.config())).collect();
        let topics: Vec<_> = configs
            .iter()
            .map(|(spec, config)| {
                let mut topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(factor));
                topic.config = config.iter().map(|(key, value)| (*key, value.as_str())).collect();
                topic.config.extend(insync.as_deref().map(|count| ("min.insync.replicas", count)));
                topic
            })
            .collect();
        if topics.is_empty() {
            return Ok(());
        }
        for result in self.admin.create_topics(&topics, &self.options).await? {
            if let Err((name, code)) = result {
                bail!("creating {name}: {code}");
            }
        }
        Ok(())
    }

    /// Sets what differs. `AlterConfigs` replaces a topic's own settings as a whole, so those of others go along.
    async fn configure(&self, changes: &[Change], existing: &BTreeMap<String, Existing>) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<&str, AlterConfig<'_>> = BTreeMap::new();
        for change in changes.iter().filter(|change| change.action == Action::Configure) {
            let alter = wanted.entry(&change.topic).or_insert_with(|| {
                let own = existing[&change.topic].config.iter().filter(|(_, setting)| setting.own);
                own.fold(AlterConfig::new(ResourceSpecifier::Topic(&change.topic)), |alter, (key, setting)| {
                    alter.set(key, &setting.value)
                })
            });
            alter.entries.insert(&change.setting, &change.wanted);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        for result in self.admin.alter_configs(wanted.values(), &self.options).await? {
            if let Err((resource, code)) = result {
                bail!("configuring {resource:?}: {code}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coderelay_schemas::topics::{self, TopicNames};

    fn as_specified() -> BTreeMap<String, Existing> {
        let existing = |spec: &TopicSpec| Existing {
            partitions: spec.partitions,
            replication_factor: 1,
            config: spec
                .config()
                .into_iter()
                .map(|(key, value)| (key.to_owned(), Setting { value, own: true }))
                .collect(),
        };
        topics::all().iter().map(|spec| (spec.name.clone(), existing(spec))).collect()
    }

    #[test]
    fn nothing_to_do_on_a_cluster_as_specified() {
        assert_eq!(plan(&topics::all(), &as_specified()), []);
    }

    #[test]
    fn missing_topics_are_created_and_settings_set() {
        let mut cluster = as_specified();
        cluster.remove(topics::DLQ);
        let retention = Setting { value: "1".into(), own: true };
        cluster.get_mut(topics::LEDGER).unwrap().config.insert("retention.ms".into(), retention);
        let changes = plan(&topics::all(), &cluster);
        let summary: Vec<_> = changes.iter().map(|c| (c.topic.as_str(), c.action, c.setting.as_str())).collect();
        assert_eq!(
            summary,
            [(topics::LEDGER, Action::Configure, "retention.ms"), (topics::DLQ, Action::Create, "partitions")]
        );
    }

    #[test]
    fn a_partition_count_is_refused_not_changed() {
        let mut cluster = as_specified();
        cluster.get_mut(topics::PACKETS).unwrap().partitions = 6;
        let changes = plan(&topics::all(), &cluster);
        assert_eq!(changes.len(), 1);
        assert_eq!((changes[0].action, changes[0].current.as_deref()), (Action::Refuse, Some("6")));
    }

    #[test]
    fn mirrored_topics_are_listed_with_their_region() {
        let mut cluster = as_specified();
        let packets = cluster[topics::PACKETS].clone();
        cluster.insert(format!("us-east.{}", topics::PACKETS), packets.clone());
        cluster.insert("unrelated".into(), packets);
        let names: Vec<_> = list(&cluster, &TopicNames::default().specs()).into_iter().map(|row| row.topic).collect();
        assert_eq!(names.len(), 6);
        assert!(names.contains(&"us-east.code.packets.v1".to_owned()));
    }
}
