//! A region as the command line names it, and how it is reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use crate::connect::Connection;
use crate::exit::Refusal;

/// A region and what of its addresses is not the connection's: `NAME`, or `NAME,kafka=HOST:PORT,cql=HOST:PORT` with
/// `keyspace=…` and `topic-suffix=…` where they differ, and `restarts=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) name: String,
    own: BTreeMap<String, String>,
}

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',').peekable();
        let name =
            parts.next().filter(|name| !name.is_empty() && !name.contains('=')).ok_or("expected a name first")?;
        let mut own = BTreeMap::new();
        while let Some(part) = parts.next() {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not key=value"))?;
            if !["kafka", "cql", "keyspace", "topic-suffix", "restarts"].contains(&key) {
                return Err(format!("{key:?} is none of kafka, cql, keyspace, topic-suffix, restarts"));
            }
            let mut value = value.to_owned();
            // Addresses are lists themselves.
            while let Some(more) = parts.next_if(|next| !next.contains('=')) {
                value.extend([",", more]);
            }
            own.insert(key.to_owned(), value);
        }
        Ok(Self { name: name.to_owned(), own })
    }
}

impl Region {
    /// How its brokers and its store are reached: by its own addresses, or those in the environment under its name.
    pub(crate) fn connection(&self, base: &Connection) -> anyhow::Result<Connection> {
        let mut connection = self.kafka(base)?;
        connection.cql = self.address("cql", "CQL_CONTACT")?;
        if let Some(keyspace) = self.own.get("keyspace") {
            connection.keyspace.clone_from(keyspace);
        }
        Ok(connection)
    }

    /// How its brokers alone are reached.
    pub(crate) fn kafka(&self, base: &Connection) -> anyhow::Result<Connection> {
        let mut connection = base.clone();
        connection.kafka = self.address("kafka", "KAFKA_BOOTSTRAP")?;
        if let Some(topic_suffix) = self.own.get("topic-suffix") {
            connection.topic_suffix.clone_from(topic_suffix);
        }
        Ok(connection)
    }

    /// The file in which the supervisor of the `MirrorMaker` that writes to it counts restarts, where one is named.
    pub(crate) fn restarts(&self) -> Option<PathBuf> {
        let file = self.own.get("restarts").cloned().or_else(|| std::env::var(self.variable("MIRROR_RESTARTS")).ok());
        file.map(PathBuf::from)
    }

    fn address(&self, key: &str, variable: &str) -> Result<String, Refusal> {
        let variable = self.variable(variable);
        self.own.get(key).cloned().or_else(|| std::env::var(&variable).ok()).ok_or_else(|| {
            let name = &self.name;
            Refusal::Usage(format!("where is {name}? Set {variable}, or name it as {name},{key}=HOST:PORT"))
        })
    }

    /// A variable's name with the region's behind.
    fn variable(&self, name: &str) -> String {
        format!("{name}_{}", self.name.to_uppercase().replace(['-', '.'], "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_a_name_with_addresses_that_may_be_lists() {
        let region: Region = "us-east,kafka=a:1,b:2,cql=c:3".parse().unwrap();
        let own = [("cql", "c:3"), ("kafka", "a:1,b:2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(region, Region { name: "us-east".into(), own: own.into() });
        assert_eq!("eu-west".parse::<Region>().unwrap().own.len(), 0);
        assert!("kafka=a:1".parse::<Region>().is_err());
        assert!("us-east,broker=a:1".parse::<Region>().unwrap_err().contains("none of kafka"));
    }
}
