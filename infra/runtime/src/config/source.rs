//! Where values come from: the file, the environment, the flags. Every value remembers its origin, down to the line of the file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use config::{Map, Value, ValueKind};
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::Mistake;
use super::schema::Schema;

/// Every environment variable of the services starts so.
pub const ENVIRONMENT_PREFIX: &str = "CODERELAY_";
/// Names the configuration file; the one variable with the prefix that is no key.
pub const CONFIG_VARIABLE: &str = "CODERELAY_CONFIG";

/// The sources of a configuration in rising order: file, environment, flags.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file, if any. One that is missing is a mistake.
    pub file: Option<PathBuf>,
    /// Variables as name and value. Names without [`ENVIRONMENT_PREFIX`] are left alone.
    pub environment: Vec<(String, String)>,
    /// Assignments from the command line; a later one wins.
    pub flags: Vec<Assignment>,
}

/// `key=value` with a dotted key, as `--set` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Dotted path of the key.
    pub key: String,
    /// The value as text; read as the type the key asks for.
    pub value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) =
            text.split_once('=').ok_or("expected key=value, as in kafka.bootstrap_servers=localhost:9092")?;
        Ok(Self { key: key.trim().to_owned(), value: value.to_owned() })
    }
}

/// The values of one source, ready to be merged over those of a lower one.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(Map<String, Value>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

impl Sources {
    /// All layers in rising order. Sources that cannot be read are mistakes, and what can be read of them is still used.
    pub(super) fn layers(&self, schema: &Schema, mistakes: &mut Vec<Mistake>) -> Vec<Layer> {
        let mut layers = Vec::new();
        if let Some(path) = &self.file {
            layers.push(Layer::file(path, mistakes));
        }
        let mut environment: Vec<_> = self.environment.iter().collect();
        environment.sort();
        layers.extend(environment.into_iter().filter_map(|(name, value)| Layer::variable(name, value, schema)));
        layers.extend(self.flags.iter().map(|assignment| Layer::flag(assignment, schema)));
        layers
    }
}

impl Layer {
    fn file(path: &Path, mistakes: &mut Vec<Mistake>) -> Self {
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                mistakes.push(Mistake {
                    key: String::new(),
                    value: None,
                    allowed: format!("cannot be read: {error}"),
                    origin: name,
                });
                return Self::default();
            }
        };
        let origin =
            |offset: usize| format!("{name} line {}", text[..offset.min(text.len())].matches('\n').count() + 1);
        let (table, errors) = DeTable::parse_recoverable(&text);
        // The parser's own rendering quotes the line, which may hold a password: message and position say enough.
        mistakes.extend(errors.iter().map(|error| Mistake {
            key: String::new(),
            value: None,
            allowed: format!("not valid TOML: {}", error.message()),
            origin: error.span().map_or_else(|| name.clone(), |span| origin(span.start)),
        }));
        Self(from_table(table.get_ref(), &origin))
    }

    /// `CODERELAY_KAFKA__CLIENT_ID` is `kafka.client_id`. A variable without `__` counts only when such a key exists: Kubernetes
    /// gives every pod variables like `CODERELAY_INGEST_SERVICE_HOST` for a Service called `coderelay-ingest`.
    fn variable(name: &str, value: &str, schema: &Schema) -> Option<Self> {
        if name == CONFIG_VARIABLE {
            return None;
        }
        let key = name.strip_prefix(ENVIRONMENT_PREFIX)?.to_ascii_lowercase();
        let path = schema.split(&key, "__");
        if path.len() == 1 && schema.at(&path).is_none() {
            return None;
        }
        Some(Self::assignment(&path, value, &format!("environment variable {name}"), schema))
    }

    fn flag(assignment: &Assignment, schema: &Schema) -> Self {
        let path = schema.split(&assignment.key, ".");
        Self::assignment(&path, &assignment.value, &format!("flag --set {}", assignment.key), schema)
    }

    fn assignment(path: &[String], text: &str, origin: &str, schema: &Schema) -> Self {
        let json = schema.at(path).map_or_else(|| Json::from(text), |node| node.coerce(text));
        let value = path.iter().skip(1).rev().fold(from_json(json, origin), |value, key| {
            Value::new(Some(&origin.to_owned()), ValueKind::Table(Map::from_iter([(key.clone(), value)])))
        });
        Self(path.first().map(|key| (key.clone(), value)).into_iter().collect())
    }
}

fn from_table(table: &DeTable<'_>, origin: &impl Fn(usize) -> String) -> Map<String, Value> {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), from_toml(value, key.span().start, origin))).collect()
}

/// `start` is where the key begins: the line an operator looks for, also when the value spans several.
fn from_toml(value: &Spanned<DeValue<'_>>, start: usize, origin: &impl Fn(usize) -> String) -> Value {
    let kind = match value.get_ref() {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| ValueKind::String(number.to_string()), ValueKind::I64),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| ValueKind::String(number.to_string()), ValueKind::Float)
        }
        DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
        DeValue::Datetime(time) => ValueKind::String(time.to_string()),
        DeValue::Array(items) => {
            ValueKind::Array(items.iter().map(|item| from_toml(item, item.span().start, origin)).collect())
        }
        DeValue::Table(table) => ValueKind::Table(from_table(table, origin)),
    };
    Value::new(Some(&origin(start)), kind)
}

pub(super) fn from_json(json: Json, origin: &str) -> Value {
    let kind = match json {
        Json::Null => ValueKind::Nil,
        Json::Bool(flag) => ValueKind::Boolean(flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => ValueKind::String(text),
        Json::Array(items) => ValueKind::Array(items.into_iter().map(|item| from_json(item, origin)).collect()),
        Json::Object(table) => {
            ValueKind::Table(table.into_iter().map(|(key, value)| (key, from_json(value, origin))).collect())
        }
    };
    Value::new(Some(&origin.to_owned()), kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_keeps_equal_signs_in_its_value() {
        let assignment: Assignment = "kafka.security.sasl.password=a=b".parse().unwrap();
        assert_eq!((assignment.key.as_str(), assignment.value.as_str()), ("kafka.security.sasl.password", "a=b"));
        assert!("kafka.client_id".parse::<Assignment>().is_err());
    }
}
