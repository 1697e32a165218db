//! The Kafka topics, from `topics.toml`.

use std::sync::LazyLock;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where ingest writes and the processor reads.
pub const PACKETS: &str = "code.packets.v1";
/// The share of the packets that the canary processor gets.
pub const CANARY: &str = "code.packets.canary.v1";
/// Every packet once, for data teams.
pub const DEDUPED: &str = "code.packets.deduped.v1";
/// Which packets were accepted; internal.
pub const LEDGER: &str = "code.packets.ledger.v1";
/// What could not be stored, and why.
pub const DLQ: &str = "code.packets.dlq.v1";

/// Partitions of every topic, unless a deployment was created with another count.
pub const PARTITIONS: i32 = 12;

/// What one topic must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// What the key holds, for people.
    pub key: String,
    /// What the value holds, for people.
    pub value: String,
    /// Partitions; the same for all topics of a deployment.
    pub partitions: i32,
    /// `cleanup.policy`.
    pub cleanup_policy: String,
    /// `retention.ms`.
    pub retention: Duration,
    /// `segment.ms`, where the broker's default would keep records long past their retention.
    pub segment: Option<Duration>,
    /// `max.message.bytes`.
    pub max_message_bytes: u64,
    /// Whether other regions mirror it as `<region>.<name>`.
    pub mirrored: bool,
}

/// How often a topic's records are kept, and how many copies a write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replication {
    /// Copies of every partition.
    pub replication_factor: i32,
    /// Copies that must have a record before it counts as written (`min.insync.replicas`).
    pub min_insync_replicas: i32,
}

/// The names of one deployment's topics. Tests and neighbours on a shared cluster use others than the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopicNames {
    /// Where ingest writes and the processor reads.
    pub packets: String,
    /// Every packet once, for data teams.
    pub deduped: String,
    /// Which packets were accepted; internal to the processor.
    pub ledger: String,
    /// What could not be stored, and why.
    pub dlq: String,
    /// The share of the packets that the canary processor gets.
    pub canary: String,
}

impl Default for TopicNames {
    fn default() -> Self {
        Self::with_suffix("")
    }
}

impl TopicNames {
    /// The contract's names, each with `suffix` appended as it is (`"-test"` makes `code.packets.v1-test`).
    pub fn with_suffix(suffix: &str) -> Self {
        let name = |base: &str| format!("{base}{suffix}");
        Self {
            packets: name(PACKETS),
            deduped: name(DEDUPED),
            ledger: name(LEDGER),
            dlq: name(DLQ),
            canary: name(CANARY),
        }
    }

    /// What these topics must look like, in the order of `topics.toml`.
    pub fn specs(&self) -> Vec<TopicSpec> {
        all().into_iter().map(|spec| TopicSpec { name: self.name_of(&spec.name).to_owned(), ..spec }).collect()
    }

    fn name_of<'a>(&'a self, contract: &'a str) -> &'a str {
        match contract {
            PACKETS => &self.packets,
            CANARY => &self.canary,
            DEDUPED => &self.deduped,
            LEDGER => &self.ledger,
            DLQ => &self.dlq,
            other => other,
        }
    }
}

impl TopicSpec {
    /// The topic's settings as Kafka names them, those that differ from a broker's defaults or must not be left to them.
    pub fn config(&self) -> Vec<(&'static str, String)> {
        let mut config = vec![
            ("cleanup.policy", self.cleanup_policy.clone()),
            ("retention.ms", self.retention.as_millis().to_string()),
            ("max.message.bytes", self.max_message_bytes.to_string()),
        ];
        if let Some(segment) = self.segment {
            config.push(("segment.ms", segment.as_millis().to_string()));
        }
        config
    }
}

/// Every topic of a deployment, in the order of `topics.toml`.
pub fn all() -> Vec<TopicSpec> {
    let file = &*FILE;
    let spec = |topic: &Topic| TopicSpec {
        name: topic.name.clone(),
        key: topic.key.clone(),
        value: topic.value.clone(),
        partitions: file.partitions,
        cleanup_policy: topic.cleanup_policy.clone(),
        retention: topic.retention,
        segment: topic.segment,
        max_message_bytes: file.max_message_bytes.as_u64(),
        mirrored: topic.mirrored,
    };
    file.topic.iter().map(spec).collect()
}

/// The replication that production should run with.
pub fn production() -> Replication {
    FILE.production
}

/// The topics as a Markdown table, for documents and consoles.
pub fn markdown() -> String {
    let row = |spec: &TopicSpec| {
        let TopicSpec { name, key, value, cleanup_policy, retention, .. } = spec;
        format!("| `{name}` | {key} | {value} | {cleanup_policy}, {} |\n", humantime::format_duration(*retention))
    };
    let rows: String = all().iter().map(row).collect();
    format!("| topic | key | value | cleanup |\n|---|---|---|---|\n{rows}")
}

/// `topics.toml` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    partitions: i32,
    max_message_bytes: ByteSize,
    production: Replication,
    topic: Vec<Topic>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    name: String,
    key: String,
    value: String,
    cleanup_policy: String,
    #[serde(with = "humantime_serde")]
    retention: Duration,
    #[serde(default, with = "humantime_serde")]
    segment: Option<Duration>,
    #[serde(default)]
    mirrored: bool,
}

// The file is part of the program, and a test reads it: it cannot fail at run time.
#[allow(clippy::expect_used)]
static FILE: LazyLock<File> =
    LazyLock::new(|| toml::from_str(include_str!("../topics.toml")).expect("topics.toml is well formed"));
