//! Deliberate mistakes, one of which the environment variable `CODERELAY_FLAW` may ask for, so that a checker can show that it would find
//! it. A build without the feature `flaws` makes none.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The environment variable that names the mistake.
pub const VARIABLE: &str = "CODERELAY_FLAW";

/// A mistake that an implementation could make. Its name is that of the variant in kebab case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// Ingest answers `committed` when the Kafka client has taken a record, in place of when Kafka has acknowledged it; with partition 0
    /// and offset 0, since its place is not known yet.
    AckBeforeKafka,
    /// The processor's memory learns of entries before their transaction commits, and keeps them when it fails.
    RememberBeforeCommit,
    /// The processor writes rows only after the transaction with their offsets has committed: a crash between the two loses them.
    OffsetsBeforeStore,
    /// The processor does not replay the ledger at assignment.
    NoReplay,
    /// The processor replays the ledger before the committed offsets are stable, as far as the ledger is stable itself at that moment.
    /// Were it to wait for the ledger's open transactions, only records on their way there would tell the order.
    ReplayBeforeOffsets,
    /// The processor takes a commit that is not answered as soon as any other request (3 s) for an abort, and commits the batch once more
    /// by the same producer.
    ReuseProducer,
    /// The processor's rows bear the time of day at which they are written in place of their record's.
    WrongWriteTime,
}

impl Flaw {
    /// Every flaw.
    pub const ALL: [Self; 7] = [
        Self::AckBeforeKafka,
        Self::RememberBeforeCommit,
        Self::OffsetsBeforeStore,
        Self::NoReplay,
        Self::ReplayBeforeOffsets,
        Self::ReuseProducer,
        Self::WrongWriteTime,
    ];
}

/// The flaw's name.
impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Whether `flaw` is asked for.
#[cfg(feature = "flaws")]
pub fn is(flaw: Flaw) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<Flaw>> = LazyLock::new(|| chosen().unwrap_or_default());
    *CHOSEN == Some(flaw)
}

/// Never, in a build without flaws.
#[cfg(not(feature = "flaws"))]
#[inline]
pub const fn is(_flaw: Flaw) -> bool {
    false
}

/// The flaw that the environment asks for; an empty name is none.
#[cfg(feature = "flaws")]
pub(crate) fn chosen() -> Result<Option<Flaw>, crate::config::Mistake> {
    use serde::de::IntoDeserializer;

    let name = std::env::var(VARIABLE).unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    Flaw::deserialize(name.into_deserializer()).map(Some).map_err(|error: serde::de::value::Error| {
        let (allowed, origin) = (error.to_string(), format!("environment variable {VARIABLE}"));
        crate::config::Mistake { key: String::new(), value: None, allowed, origin }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_made_unless_it_is_asked_for() {
        assert!(!Flaw::ALL.into_iter().any(is));
    }

    #[test]
    fn a_flaw_is_named_in_kebab_case() {
        assert_eq!(Flaw::OffsetsBeforeStore.to_string(), "offsets-before-store");
    }
}
