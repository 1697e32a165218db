//! A configuration as TOML: the one in effect, and the reference of every key.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use super::Config;
use super::merge::prune;
use super::schema::{Node, Schema};
use super::source::ENVIRONMENT_PREFIX;

/// A TOML file with every key at its default, and with its meaning, what is allowed and its environment variable as comments. It is
/// itself a valid configuration file.
pub fn document<T: Config>() -> String {
    let schema = Schema::of::<T>();
    let mut out = String::new();
    comment(&mut out, schema.root().description());
    comment(&mut out, Some("Each value below is the default; keys without one are commented out."));
    let describe = |out: &mut String, node: Node<'_>, path: &[String]| {
        out.push('\n');
        comment(out, node.description());
        if node.properties().is_none() {
            let variable = format!("{ENVIRONMENT_PREFIX}{}", path.join("__").to_ascii_uppercase());
            comment(out, Some(&format!("Allowed: {}. Environment: {variable}", node.allowed())));
        }
    };
    Writer { out, unset: true, describe, origin: |_: &[String]| None }.write(&schema, &T::default())
}

/// The configuration as TOML, with the source of a value, where there is one, after it.
pub(super) fn show<'a, T: Config>(config: &T, origin: impl Fn(&[String]) -> Option<&'a str>) -> String {
    let describe = |out: &mut String, node: Node<'_>, _: &[String]| {
        if node.properties().is_some() && !out.is_empty() {
            out.push('\n');
        }
    };
    Writer { out: String::new(), unset: false, describe, origin }.write(&Schema::of::<T>(), config)
}

/// Writes keys in the order of their declaration.
struct Writer<D, O> {
    out: String,
    /// Whether keys without a value are written too, as comments.
    unset: bool,
    /// Writes what precedes a key or table.
    describe: D,
    /// The source of a value, written after it.
    origin: O,
}

impl<'a, D, O> Writer<D, O>
where
    D: Fn(&mut String, Node<'_>, &[String]),
    O: Fn(&[String]) -> Option<&'a str>,
{
    fn write<T: Config>(mut self, schema: &Schema, config: &T) -> String {
        let mut json = serde_json::to_value(config).unwrap_or_default();
        prune(&mut json);
        self.table(schema.root(), json.as_object(), &mut Vec::new());
        self.out
    }

    /// Plain keys first: in TOML whatever follows a `[header]` belongs to it.
    fn table(&mut self, node: Node<'_>, values: Option<&Map<String, Json>>, path: &mut Vec<String>) {
        let Some(keys) = node.properties() else { return };
        let (tables, plain): (Vec<_>, Vec<_>) = keys
            .keys()
            .filter_map(|key| Some((key, node.child(key)?, values.and_then(|values| values.get(key)))))
            .filter(|(_, _, value)| self.unset || value.is_some())
            .partition(|(_, child, _)| child.properties().is_some());
        for (key, child, value) in plain.into_iter().chain(tables) {
            path.push(key.clone());
            (self.describe)(&mut self.out, child, path);
            match child.properties() {
                Some(_) => {
                    self.line(value.is_some(), &format!("[{}]", path.join(".")));
                    self.table(child, value.and_then(Json::as_object), path);
                }
                None => self.key(key, value, path),
            }
            path.pop();
        }
    }

    fn key(&mut self, key: &str, value: Option<&Json>, path: &[String]) {
        let value = value.and_then(|value| toml::Value::try_from(value).ok());
        let origin = (self.origin)(path).map(|origin| format!("  # {origin}")).unwrap_or_default();
        match value {
            Some(value) => self.line(true, &format!("{key} = {value}{origin}")),
            None => self.line(false, &format!("{key} =")),
        }
    }

    fn line(&mut self, set: bool, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{}{text}", if set { "" } else { "# " });
    }
}

fn comment(out: &mut String, text: Option<&str>) {
    for line in text.into_iter().flat_map(str::lines) {
        out.push_str(format!("# {line}").trim_end());
        out.push('\n');
    }
}
