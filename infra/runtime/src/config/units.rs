//! Values with a unit: durations as `"15s"`, sizes as `"4MiB"`. Both are strings in TOML so that no reader has to guess the unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use garde::rules::range::{Bounds, OutOfBounds};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The `format` of a [`HumanDuration`] in a schema.
pub(super) const DURATION_FORMAT: &str = "human-duration";
/// The `format` of a [`HumanSize`] in a schema.
pub(super) const SIZE_FORMAT: &str = "human-size";

/// A span of time, written as `"250ms"`, `"15s"`, `"1m 30s"` or `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The plain value.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whole milliseconds, the unit of nearly every librdkafka property.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for HumanDuration {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self)
    }
}

/// A number of bytes, written as `"512"`, `"64KiB"`, `"4MiB"` or `"1GB"`; `KiB` counts in 1,024s, `kB` in 1,000s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanSize(pub u64);

impl HumanSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB of 1,024 bytes.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib * 1024)
    }

    /// So many MiB of 1,024 KiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes, as lengths in memory are counted.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for HumanSize {
    /// Exact: the largest binary unit that divides the value, so that what `config show` prints reads back as the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for HumanSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<ByteSize>().map(|size| Self(size.as_u64()))
    }
}

/// What both units need so that serde reads and writes them as text, the schema checks them and `garde(range)` bounds them.
macro_rules! textual_unit {
    ($unit:ident, $format:expr, $max:expr) => {
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $unit {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($unit).into()
            }

            /// Text. It is called a number as well only because schemars would leave the bounds of `garde(range)` out otherwise;
            /// `config::schema` puts that right.
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "number"], "format": $format })
            }
        }

        impl Bounds for $unit {
            type Size = Self;

            const MIN: Self = Self::new_min();
            const MAX: Self = $max;

            fn validate_bounds(&self, lower: Self, upper: Self) -> Result<(), OutOfBounds> {
                match self {
                    value if *value < lower => Err(OutOfBounds::Lower),
                    value if *value > upper => Err(OutOfBounds::Upper),
                    _ => Ok(()),
                }
            }
        }

        // `garde(range(min = …))` is also read by schemars, which turns the bound into JSON.
        impl From<$unit> for serde_json::Value {
            fn from(value: $unit) -> Self {
                value.to_string().into()
            }
        }
    };
}

impl HumanDuration {
    const fn new_min() -> Self {
        Self(Duration::ZERO)
    }
}

impl HumanSize {
    const fn new_min() -> Self {
        Self(0)
    }
}

textual_unit!(HumanDuration, DURATION_FORMAT, Self(Duration::MAX));
textual_unit!(HumanSize, SIZE_FORMAT, Self(u64::MAX));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for text in ["250ms", "15s", "1m 30s", "7days"] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration, duration.to_string().parse().unwrap(), "{text}");
        }
        assert_eq!(HumanDuration::from_secs(90).to_string(), "1m 30s");
        assert!("15".parse::<HumanDuration>().is_err(), "a number without a unit says nothing");
    }

    #[test]
    fn sizes_are_exact_and_read_back_as_written() {
        for (bytes, text) in
            [(0, "0B"), (1000, "1000B"), (1 << 10, "1KiB"), (4 << 20, "4MiB"), ((1 << 20) + 1, "1048577B")]
        {
            assert_eq!(HumanSize(bytes).to_string(), text);
            assert_eq!(text.parse::<HumanSize>().unwrap(), HumanSize(bytes));
        }
        assert_eq!("2 MB".parse::<HumanSize>().unwrap(), HumanSize(2_000_000));
    }
}
