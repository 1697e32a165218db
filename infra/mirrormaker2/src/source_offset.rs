//! How far `MirrorMaker` has read a partition: Connect's source offsets, as they stand in the offset topic.
//!
//! A key is the JSON array of connector and partition (`MirrorUtils.wrapPartition`), a value `{"offset":N}` with the last record that was
//! mirrored: a task that starts seeks to N + 1, and to the earliest record where there is no value
//! (`MirrorSourceTask.initializeConsumer`, Kafka 4.3).

use serde::Deserialize;

/// The connector that mirrors topics, as dedicated `MirrorMaker` names it.
const CONNECTOR: &str = "MirrorSourceConnector";

/// A partition in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct SourcePartition {
    /// The source's name.
    pub cluster: String,
    /// The partition's number.
    pub partition: i32,
    /// The topic's name in the source.
    pub topic: String,
}

#[derive(Deserialize)]
struct Value {
    offset: i64,
}

impl SourcePartition {
    /// The partition that a record's key names; none if the record is another connector's.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let (connector, partition) = serde_json::from_slice::<(String, Self)>(key).ok()?;
        (connector == CONNECTOR).then_some(partition)
    }

    /// The key as Connect writes it, which finds it by its bytes: the three names are in the order that Java's `HashMap` gives them.
    pub fn key(&self) -> Vec<u8> {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let (cluster, partition, topic) = (text(&self.cluster), self.partition, text(&self.topic));
        format!(r#"["{CONNECTOR}",{{"cluster":{cluster},"partition":{partition},"topic":{topic}}}]"#).into_bytes()
    }
}

/// The first offset that has not been mirrored, by a record's value; none if nothing has.
pub fn next(value: Option<&[u8]>) -> Option<i64> {
    let value: Value = serde_json::from_slice(value?).ok()?;
    Some(value.offset + 1)
}

/// The value after which a task goes on at `next`: none, a tombstone, for the beginning.
pub fn value(next: i64) -> Option<String> {
    (next > 0).then(|| format!(r#"{{"offset":{}}}"#, next - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_as_it_is_read() {
        let key = br#"["MirrorSourceConnector",{"cluster":"us-east","partition":3,"topic":"code.packets.v1"}]"#;
        let partition = SourcePartition::parse(key).unwrap();
        assert_eq!((partition.partition, partition.topic.as_str()), (3, "code.packets.v1"));
        assert_eq!(partition.key(), key);
        assert_eq!(SourcePartition::parse(br#"["MirrorHeartbeatConnector",{"sourceClusterAlias":"us-east"}]"#), None);
    }

    #[test]
    fn the_value_is_the_last_record_not_the_next() {
        assert_eq!(next(Some(br#"{"offset":9}"#)), Some(10));
        assert_eq!((next(None), value(0)), (None, None));
        assert_eq!(value(10).as_deref(), Some(r#"{"offset":9}"#));
    }
}
