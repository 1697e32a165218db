//! The Kafka topics, from `topics.toml`.

use std::sync::LazyLock;
use std::time::Duration;

use bytesize::ByteSize;
use garde::Validate;
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct TopicNames {
    /// Where ingest writes and the processor reads.
    #[garde(custom(legal_name))]
    pub packets: String,
    /// Every packet once, for data teams.
    #[garde(custom(legal_name))]
    pub deduped: String,
    /// Which packets were accepted; internal to the processor.
    #[garde(custom(legal_name))]
    pub ledger: String,
    /// What could not be stored, and why.
    #[garde(custom(legal_name))]
    pub dlq: String,
    /// The share of the packets that the canary processor gets.
    #[garde(custom(legal_name))]
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

/// Kafka's rule for topic names (`org.apache.kafka.common.internals.Topic`).
// garde calls it with the type of the field.
#[allow(clippy::ptr_arg, clippy::trivially_copy_pass_by_ref)]
fn legal_name(name: &String, _context: &()) -> garde::Result {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 249 || !name.chars().all(legal) || matches!(name.as_str(), "." | "..") {
        return Err(garde::Error::new("a topic name has 1 to 249 of the characters a-z A-Z 0-9 . _ -"));
    }
    Ok(())
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
        max_message_bytes: topic.max_message_bytes.unwrap_or(file.max_message_bytes).as_u64(),
        mirrored: topic.mirrored,
    };
    file.topic.iter().map(spec).collect()
}

/// The largest record that any topic takes, in bytes: what a producer to all of them has to allow.
pub fn max_message_bytes() -> u64 {
    all().iter().map(|spec| spec.max_message_bytes).max().unwrap_or_default()
}

/// The replication that production should run with.
pub fn production() -> Replication {
    FILE.production
}

/// The topics as a Markdown table, for documents and consoles.
pub fn markdown() -> String {
    let row =
        |name: &str, key: &str, value: &str, cleanup: &str| format!("| `{name}` | {key} | {value} | {cleanup} |\n");
    let rows = all().into_iter().map(|spec| {
        let TopicSpec { name, key, value, cleanup_policy, retention, .. } = &spec;
        let cleanup = format!("{cleanup_policy}, {}", humantime::format_duration(*retention));
        let mirror = format!("<region>.{name}");
        let mirror = spec.mirrored.then(|| row(&mirror, key, "the same, mirrored from another region", cleanup_policy));
        row(name, key, value, &cleanup) + &mirror.unwrap_or_default()
    });
    format!("| topic | key | value | cleanup |\n|---|---|---|---|\n{}", rows.collect::<String>())
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
    max_message_bytes: Option<ByteSize>,
    #[serde(default)]
    mirrored: bool,
}

// The file is part of the program, and a test reads it: it cannot fail at run time.
#[allow(clippy::expect_used)]
static FILE: LazyLock<File> =
    LazyLock::new(|| toml::from_str(include_str!("../topics.toml")).expect("topics.toml is well formed"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_topics_of_the_contract() {
        let names: Vec<String> = all().into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, [PACKETS, CANARY, DEDUPED, LEDGER, DLQ]);
        assert!(all().iter().all(|spec| spec.partitions == PARTITIONS));
        assert_eq!(TopicNames::default().specs(), all());
    }

    #[test]
    fn a_packet_of_the_largest_size_fits_in_a_record() {
        let limits = crate::validate::PacketLimits::default();
        let packet = limits.content_max.as_u64() + limits.metadata_bytes.as_u64() + limits.repo_id_max.as_u64();
        assert!(all().iter().all(|spec| spec.max_message_bytes > packet + 64 * 1024));
        let limit = |name| all().iter().find(|spec| spec.name == name).unwrap().max_message_bytes;
        assert!(limit(DLQ) > limit(PACKETS) + 64 * 1024, "the largest record fits with its reason");
        assert_eq!(limit(DEDUPED), limit(PACKETS), "whatever was accepted can be published");
    }

    #[test]
    fn the_ledger_outlives_the_dedup_window() {
        let specs = all();
        let ledger = specs.iter().find(|spec| spec.name == LEDGER).unwrap();
        assert!(ledger.retention > Duration::from_secs(3600));
        assert!(ledger.segment.unwrap() < ledger.retention);
    }

    #[test]
    fn settings_are_named_as_kafka_names_them() {
        let specs = TopicNames::with_suffix("-test").specs();
        let ledger = specs.iter().find(|spec| spec.name == "code.packets.ledger.v1-test").unwrap();
        let expected = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "86400000"),
            ("max.message.bytes", "5242880"),
            ("segment.ms", "3600000"),
        ];
        assert_eq!(ledger.config(), expected.map(|(key, value)| (key, value.to_owned())));
    }

    #[test]
    fn production_survives_the_loss_of_one_broker() {
        assert_eq!(production(), Replication { replication_factor: 3, min_insync_replicas: 2 });
    }

    #[test]
    fn illegal_names_are_refused() {
        assert!(TopicNames::with_suffix("-test").validate().is_ok());
        assert_eq!(TopicNames::with_suffix("/test").validate().unwrap_err().iter().count(), 5);
    }

    #[test]
    fn the_table_lists_every_topic_and_the_mirrored_one() {
        let table = markdown();
        assert_eq!(table.lines().count(), 2 + all().len() + 1);
        assert!(table.contains("| `code.packets.dlq.v1` | original |"), "{table}");
        assert!(table.contains("| `<region>.code.packets.v1` | repo_id, UTF-8 |"), "{table}");
        assert!(table.lines().all(|line| line.matches('|').count() == 5), "{table}");
    }
}
