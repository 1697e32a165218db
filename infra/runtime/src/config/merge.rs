//! Defaults with the layers merged over them, and where each value came from.

use std::collections::BTreeMap;

use config::{Value, ValueKind};
use serde_json::{Map, Value as Json};

use super::source::Layer;

/// Merged values as JSON; absent and unset keys are left out.
#[derive(Debug)]
pub(super) struct Merged {
    /// What is left to be used: values found wrong are replaced here.
    pub(super) json: Json,
    /// As the sources gave it.
    given: Json,
    defaults: Json,
    origins: BTreeMap<Vec<String>, String>,
}

impl Merged {
    pub(super) fn new(defaults: Json, layers: Vec<Layer>) -> Result<Self, config::ConfigError> {
        let merged = layers
            .into_iter()
            .fold(config::Config::builder(), config::ConfigBuilder::<config::builder::DefaultState>::add_source)
            .build()?;
        let mut origins = BTreeMap::new();
        let given = to_json(&merged.cache, &mut Vec::new(), &mut origins);
        let mut json = defaults.clone();
        overlay(&mut json, given);
        prune(&mut json);
        Ok(Self { given: json.clone(), json, defaults, origins })
    }

    /// The value as it was given, or the default.
    pub(super) fn value(&self, path: &[String]) -> Option<&Json> {
        self.given.pointer(&pointer(path))
    }

    /// The source of a value, or of something inside or around it. `None`: the default.
    pub(super) fn origin(&self, path: &[String]) -> Option<&str> {
        let inside =
            || self.origins.range(path.to_vec()..).find(|(key, _)| key.starts_with(path)).map(|(_, origin)| origin);
        let around = || (1..path.len()).rev().find_map(|length| self.origins.get(&path[..length]));
        self.origins.get(path).or_else(inside).or_else(around).map(String::as_str)
    }

    /// Puts the default back in place of a value, or removes a key that has none.
    pub(super) fn restore_default(&mut self, path: &[String]) {
        let Some((key, table)) = path.split_last() else { return };
        let default = self.defaults.pointer(&pointer(path)).filter(|value| !value.is_null()).cloned();
        match self.json.pointer_mut(&pointer(table)) {
            Some(Json::Object(table)) => {
                match default {
                    Some(value) => table.insert(key.clone(), value),
                    None => table.shift_remove(key),
                };
            }
            // A bad item: the whole list goes back to its default.
            Some(Json::Array(_)) => self.restore_default(table),
            _ => {}
        }
    }
}

/// `a.b[0].c`
pub(super) fn dotted(path: &[String]) -> String {
    path.iter().fold(String::new(), |text, key| match key.parse::<usize>() {
        Ok(index) if !text.is_empty() => format!("{text}[{index}]"),
        _ if text.is_empty() => key.clone(),
        _ => format!("{text}.{key}"),
    })
}

fn pointer(path: &[String]) -> String {
    path.iter().flat_map(|key| ["/".to_owned(), key.replace('~', "~0").replace('/', "~1")]).collect()
}

fn to_json(value: &Value, path: &mut Vec<String>, origins: &mut BTreeMap<Vec<String>, String>) -> Json {
    if let Some(origin) = value.origin() {
        origins.insert(path.clone(), origin.to_owned());
    }
    match &value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(flag) => Json::Bool(*flag),
        ValueKind::I64(number) => Json::from(*number),
        ValueKind::U64(number) => Json::from(*number),
        ValueKind::I128(number) => Json::from(number.to_string()),
        ValueKind::U128(number) => Json::from(number.to_string()),
        ValueKind::Float(number) => Json::from(*number),
        ValueKind::String(text) => Json::from(text.as_str()),
        ValueKind::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                path.push(index.to_string());
                let item = to_json(item, path, origins);
                path.pop();
                item
            })
            .collect(),
        ValueKind::Table(table) => {
            let table: Map<String, Json> = table
                .iter()
                .map(|(key, value)| {
                    path.push(key.clone());
                    let value = to_json(value, path, origins);
                    path.pop();
                    (key.clone(), value)
                })
                .collect();
            Json::Object(table)
        }
    }
}

fn overlay(below: &mut Json, above: Json) {
    match (below, above) {
        (Json::Object(below), Json::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key).or_insert(Json::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// TOML has no null: an unset key is an absent one.
pub(super) fn prune(json: &mut Json) {
    if let Json::Object(table) = json {
        table.retain(|_, value| !value.is_null());
        table.values_mut().for_each(prune);
    }
}
