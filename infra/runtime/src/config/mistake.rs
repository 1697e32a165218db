//! What is wrong with a configuration, said so that it can be put right without opening the manual.

use std::fmt;

/// One mistake: where, what was given, what is allowed, and which source gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted path of the key, as `kafka.security.protocol`; empty when the mistake is about a whole source.
    pub key: String,
    /// The value given, as TOML; redacted when it is or may be a secret. `None` when there is none to show.
    pub value: Option<String>,
    /// What is wrong or what is allowed instead.
    pub allowed: String,
    /// `ingest.toml line 12`, `environment variable CODERELAY_…`, `flag --set …` or `default`.
    pub origin: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            write!(f, ": ")?;
        }
        write!(f, "{} ({})", self.allowed, self.origin)
    }
}

/// Every mistake of a configuration, in key order. Never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// Whether some mistake is already known about this key, or about a table that holds it.
    pub(super) fn concern(&self, key: &str) -> bool {
        self.0.iter().any(|mistake| {
            !mistake.key.is_empty()
                && key.strip_prefix(&mistake.key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} {} in the configuration:", if count == 1 { "mistake" } else { "mistakes" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_reads_as_one_line() {
        let mistake = Mistake {
            key: "grpc.workers".into(),
            value: Some("0".into()),
            allowed: "must be at least 1".into(),
            origin: "flag --set grpc.workers".into(),
        };
        assert_eq!(
            Mistakes(vec![mistake]).to_string(),
            "1 mistake in the configuration:\n  grpc.workers = 0: must be at least 1 (flag --set grpc.workers)"
        );
    }
}
