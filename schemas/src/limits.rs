//! Bounds of a packet, as configuration.

use std::time::Duration;

use bytesize::ByteSize;
use garde::Validate;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::gzip::GzipLimits;

/// Bounds of one packet. The defaults are the contract's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct PacketLimits {
    /// Longest `repo_id`, in bytes of UTF-8.
    #[garde(custom(not_zero))]
    #[serde(with = "size")]
    #[schemars(schema_with = "size::schema")]
    pub repo_id_max: ByteSize,
    /// Largest `content`, compressed.
    #[garde(custom(not_zero))]
    #[serde(with = "size")]
    #[schemars(schema_with = "size::schema")]
    pub content_max: ByteSize,
    /// Largest `content`, expanded.
    #[garde(custom(not_zero))]
    #[serde(with = "size")]
    #[schemars(schema_with = "size::schema")]
    pub expanded_max: ByteSize,
    /// Most expanded bytes for each compressed byte; judged above 64 KiB expanded.
    #[garde(range(min = 1))]
    #[schemars(range(min = 1))]
    pub ratio_max: u32,
    /// Most metadata entries.
    #[garde(skip)]
    pub metadata_entries: u32,
    /// Most bytes of all metadata keys and values together.
    #[garde(skip)]
    #[serde(with = "size")]
    #[schemars(schema_with = "size::schema")]
    pub metadata_bytes: ByteSize,
    /// How far `created_at` may be from the clock of the receiver before that replaces it.
    #[garde(skip)]
    #[serde(with = "humantime_serde")]
    #[schemars(schema_with = "duration_schema")]
    pub created_at_skew: Duration,
}

// garde calls it with the type of the context.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn not_zero(size: &ByteSize, _context: &()) -> garde::Result {
    if size.as_u64() == 0 { Err(garde::Error::new("must be at least 1 byte")) } else { Ok(()) }
}

/// Sizes as `"4MiB"`. `ByteSize` itself writes one decimal place, which would change a size that is read back.
mod size {
    use bytesize::ByteSize;
    use schemars::{Schema, SchemaGenerator, json_schema};
    use serde::{Deserialize as _, Deserializer, Serializer};

    const UNITS: [(u64, &str); 4] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];

    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = size.as_u64();
        let exact = UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
        let (unit, name) = exact.unwrap_or(&(1, "B"));
        serializer.serialize_str(&format!("{}{name}", bytes / unit))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        ByteSize::deserialize(deserializer)
    }

    /// A text in the format that the services' configuration calls `human-size`.
    pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
        let allowed = "a size such as \"512B\", \"64KiB\" or \"4MiB\"";
        json_schema!({ "type": "string", "format": "human-size", "x-allowed": allowed })
    }
}

/// A text in the format that the services' configuration calls `human-duration`.
fn duration_schema(_: &mut SchemaGenerator) -> Schema {
    let allowed = "a duration such as \"250ms\", \"15s\" or \"1h 30m\"";
    json_schema!({ "type": "string", "format": "human-duration", "x-allowed": allowed })
}

impl Default for PacketLimits {
    fn default() -> Self {
        Self {
            repo_id_max: ByteSize::b(256),
            content_max: ByteSize::mib(4),
            expanded_max: ByteSize::mib(64),
            ratio_max: 200,
            metadata_entries: 64,
            metadata_bytes: ByteSize::kib(16),
            created_at_skew: Duration::from_secs(24 * 3600),
        }
    }
}

impl PacketLimits {
    /// The part that concerns the content.
    pub fn gzip(&self) -> GzipLimits {
        GzipLimits {
            max_compressed: self.content_max.as_u64(),
            max_expanded: self.expanded_max.as_u64(),
            max_ratio: self.ratio_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_configured_with_units_and_survive_a_round_trip() {
        let limits: PacketLimits =
            toml::from_str("content_max = \"1MiB\"\nexpanded_max = 1000001\ncreated_at_skew = \"1h\"").unwrap();
        assert_eq!(limits.content_max, ByteSize::mib(1));
        assert_eq!(limits.created_at_skew, Duration::from_secs(3600));
        let text = toml::to_string(&limits).unwrap();
        assert!(text.contains("content_max = \"1MiB\"") && text.contains("expanded_max = \"1000001B\""), "{text}");
        assert_eq!(toml::from_str::<PacketLimits>(&text).unwrap(), limits);
        assert!(toml::from_str::<PacketLimits>("content_maximum = 1").is_err(), "unknown keys are mistakes");
        assert!(PacketLimits { content_max: ByteSize::b(0), ratio_max: 0, ..limits }.validate().is_err());
    }

    #[test]
    fn every_bound_but_the_ratio_and_the_count_has_a_unit() {
        let schema = schemars::schema_for!(PacketLimits);
        let properties = schema.get("properties").unwrap().as_object().unwrap();
        let formats = properties.values().filter_map(|property| property.get("format")?.as_str());
        assert_eq!(formats.filter(|format| format.starts_with("human-")).count(), 5);
        assert!(properties.values().all(|property| property.get("description").is_some()));
    }
}
