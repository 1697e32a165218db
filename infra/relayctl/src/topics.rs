//! `relayctl topics`: the topics as they are, as they should be, and the way from one to the other.

use std::collections::BTreeMap;
use std::time::Duration;

use coderelay_schemas::topics::{Replication, TopicSpec, production};
use serde::Serialize;

use crate::cluster::{Cluster, Creation, Existing};
use crate::connect::Connection;
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

    /// Copies of every partition (-1: the brokers' default), and how many of them must have a record.
    fn replication(&self) -> (i32, Option<i32>) {
        let Replication { replication_factor, min_insync_replicas } = production();
        if self.production {
            (replication_factor, Some(min_insync_replicas))
        } else {
            (self.replication_factor.unwrap_or(-1), None)
        }
    }
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
        let (replication_factor, insync) = wanted.replication();
        cluster.create(&missing(&specs, &changes, insync), replication_factor).await?;
        cluster.configure(&settings(&changes), &existing).await?;
    }
    Ok(if refused { Exit::Failure } else { Exit::Success })
}

/// The topics to create.
fn missing<'a>(specs: &'a [TopicSpec], changes: &[Change], insync: Option<i32>) -> Vec<Creation<'a>> {
    let missing = |name: &str| changes.iter().any(|change| change.action == Action::Create && change.topic == name);
    let creation = |spec: &'a TopicSpec| {
        let insync = insync.map(|count| ("min.insync.replicas", count.to_string()));
        let settings = spec.config().into_iter().chain(insync).collect();
        Creation { name: &spec.name, partitions: spec.partitions, settings }
    };
    specs.iter().filter(|spec| missing(&spec.name)).map(creation).collect()
}

/// The settings to change, by topic.
fn settings(changes: &[Change]) -> BTreeMap<&str, Vec<(&str, &str)>> {
    let mut settings: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.action == Action::Configure) {
        settings.entry(&change.topic).or_default().push((&change.setting, &change.wanted));
    }
    settings
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Setting;
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
