//! From merged values to a checked configuration, gathering every mistake on the way.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value as Json};

use super::Config;
use super::merge::{Merged, dotted};
use super::mistake::{Mistake, Mistakes};
use super::schema::{Node, Schema};
use super::secret::{REDACTED, names_a_secret};
use super::words::{OWN_RULE, Words};

/// Two names closer than this are taken for a slip of the hand (Jaro-Winkler, 0 to 1).
const CLOSE_MATCH: f64 = 0.8;

/// Gathers mistakes and takes each bad value out of the merged configuration, so that the next stage still runs on the rest.
pub(super) struct Check<'a> {
    schema: &'a Schema,
    merged: Merged,
    mistakes: Mistakes,
    /// Tables in which a value that had the wrong type or form was replaced by its default.
    replaced: Vec<Vec<String>>,
}

impl<'a> Check<'a> {
    pub(super) fn new(schema: &'a Schema, merged: Merged, mistakes: Vec<Mistake>) -> Self {
        Self { schema, merged, mistakes: Mistakes(mistakes), replaced: Vec::new() }
    }

    /// Names and types against the schema, then ranges and rules across keys.
    pub(super) fn run<T: Config>(mut self) -> Result<(T, Merged), Mistakes> {
        self.against_schema();
        let config = self.deserialize::<T>();
        if let Some(config) = &config {
            self.against_rules(config);
        }
        match config {
            Some(config) if self.mistakes.0.is_empty() => Ok((config, self.merged)),
            _ => {
                self.mistakes.0.sort_by(|a, b| a.key.cmp(&b.key));
                Err(self.mistakes)
            }
        }
    }

    fn against_schema(&mut self) {
        let validator = match self.schema.validator() {
            Ok(validator) => validator,
            Err(error) => {
                return self.push(&[], None, format!("the schema of this configuration is not valid: {error}"));
            }
        };
        let json = self.merged.json.clone();
        for error in validator.iter_errors(&json) {
            self.explain(&error);
        }
    }

    fn explain(&mut self, error: &ValidationError<'_>) {
        let path: Vec<String> = error.instance_path().segments().map(|segment| segment.to_string()).collect();
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                for key in unexpected {
                    self.unknown_key(&path, key);
                }
            }
            // An optional table offers "table or nothing": what is wrong inside the table is what matters.
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }
                if error.instance().is_object() =>
            {
                let table = context.iter().find(|errors| !errors.iter().any(|inner| is_type_error_at(inner, error)));
                match table {
                    Some(errors) => errors.iter().for_each(|inner| self.explain(inner)),
                    None => self.wrong_value(&path),
                }
            }
            ValidationErrorKind::Required { property } => {
                let key = property.as_str().unwrap_or_default().to_owned();
                self.push(&[path.clone(), vec![key]].concat(), None, "required but not set".to_owned());
                // A table that cannot be whole would only be reported once more.
                self.merged.restore_default(&path);
            }
            _ => self.wrong_value(&path),
        }
    }

    fn unknown_key(&mut self, table: &[String], key: &str) {
        let known = if table.is_empty() { Some(self.schema.root()) } else { self.schema.at(table) };
        let nearest = known.and_then(Node::properties).and_then(|known| {
            let similar = |name: &&String| strsim::jaro_winkler(name, key);
            known.keys().max_by(|a, b| similar(a).total_cmp(&similar(b))).filter(|name| similar(name) >= CLOSE_MATCH)
        });
        let path = [table, &[key.to_owned()][..]].concat();
        let secret = names_a_secret(key) || nearest.and_then(|name| known?.child(name)).is_some_and(Node::holds_secret);
        let value = self.merged.value(&path).map(|value| render(value, secret));
        let allowed = nearest.map_or_else(
            || {
                let known: Vec<_> = known.and_then(Node::properties).into_iter().flat_map(Map::keys).cloned().collect();
                format!("unknown key; known here: {}", known.join(", "))
            },
            |name| format!("unknown key; did you mean {}?", dotted(&[table, std::slice::from_ref(name)].concat())),
        );
        self.push(&path, value, allowed);
    }

    fn wrong_value(&mut self, path: &[String]) {
        let node = self.schema.at(path);
        let value = self.merged.value(path).map(|value| render(value, self.is_secret(path)));
        let allowed = node.map_or_else(|| "not allowed".to_owned(), |node| format!("must be {}", node.allowed()));
        self.push(path, value, allowed);
        self.replaced.extend(path.split_last().map(|(_, table)| table.to_vec()));
    }

    /// What the schema cannot express shows here; each failure is noted, replaced by its default, and the rest tried again.
    fn deserialize<T: Config>(&mut self) -> Option<T> {
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&self.merged.json) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let path: Vec<String> =
                error.path().iter().map(|segment| segment.to_string().trim_matches(['[', ']']).to_owned()).collect();
            // A table without a required value, which was taken out for a mistake of its own.
            if self.replaced.contains(&path) && self.merged.value(&path).is_some_and(Json::is_object) {
                self.merged.restore_default(&path);
                continue;
            }
            let known = self.mistakes.0.len();
            let value = self.merged.value(&path).map(|value| render(value, self.is_secret(&path)));
            let message =
                if self.is_secret(&path) { "not a valid value".to_owned() } else { error.inner().to_string() };
            self.push(&path, value, message);
            // Nothing was replaced: trying again would fail the same way.
            if path.is_empty() || path == ["."] || self.mistakes.0.len() == known {
                return None;
            }
        }
    }

    /// A rule that looks at a whole table may put the key at fault, and a colon, before its message, one line for each fault.
    fn against_rules<T: Config>(&mut self, config: &T) {
        let Err(report) = garde::i18n::with_i18n(Words, || config.validate()) else { return };
        let known = self.mistakes.clone();
        for (path, error) in report.iter() {
            let table = path.to_string().replace('[', ".").replace(']', "");
            let own_rule = error.message().starts_with(OWN_RULE);
            for line in error.message().trim_start_matches(OWN_RULE).lines() {
                let (path, message) = self.point_at(&table, line);
                if known.concern(&dotted(&path)) || (!own_rule && self.is_beside_a_default_by_mistake(&path)) {
                    continue;
                }
                let value = self.merged.value(&path).filter(|value| !value.is_object());
                self.push(&path, value.map(|value| render(value, self.is_secret(&path))), message.to_owned());
            }
        }
    }

    /// Whether a value in the same table, or in the one around it, is only a default because what was given was wrong: a rule that
    /// compares the two says nothing about what the operator wrote. No rule reaches further; the entries of a map are not compared.
    fn is_beside_a_default_by_mistake(&self, path: &[String]) -> bool {
        let in_map = path.split_last().and_then(|(_, table)| self.schema.at(table)).is_some_and(Node::is_map);
        let within = |table: &[String]| path.starts_with(table) && path.len() <= table.len() + 2;
        !in_map && self.replaced.iter().any(|table| !table.is_empty() && within(table))
    }

    fn point_at<'m>(&self, table: &str, message: &'m str) -> (Vec<String>, &'m str) {
        let inner = message.split_once(": ").and_then(|(key, rest)| {
            let dotted = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
            let path = self.schema.split(&dotted, ".");
            self.schema.at(&path).map(|_| (path, rest))
        });
        inner.unwrap_or_else(|| match table {
            "" => (Vec::new(), message),
            table => (self.schema.split(table, "."), message),
        })
    }

    fn is_secret(&self, path: &[String]) -> bool {
        path.last().is_some_and(|key| names_a_secret(key)) || self.schema.at(path).is_some_and(Node::holds_secret)
    }

    fn push(&mut self, path: &[String], value: Option<String>, allowed: String) {
        let key = dotted(path);
        // What is missing is best looked for beside what was given.
        let beside = || path.split_last().filter(|_| self.merged.value(path).is_none()).map(|(_, table)| table);
        let origin = self.merged.origin(path).or_else(|| self.merged.origin(beside()?)).unwrap_or("default").to_owned();
        let mistake = Mistake { key, value, allowed, origin };
        if !self.mistakes.0.contains(&mistake) {
            self.mistakes.0.push(mistake);
        }
        self.merged.restore_default(path);
    }
}

fn is_type_error_at(inner: &ValidationError<'_>, outer: &ValidationError<'_>) -> bool {
    matches!(inner.kind(), ValidationErrorKind::Type { .. }) && inner.instance_path() == outer.instance_path()
}

/// A value for a mistake: short, on one line, and never a secret.
fn render(value: &Json, secret: bool) -> String {
    match value {
        Json::Null => "(unset)".to_owned(),
        _ if secret => REDACTED.to_owned(),
        // Where a file is asked for and its content given.
        Json::String(text) if text.contains("PRIVATE KEY") => REDACTED.to_owned(),
        Json::Object(_) => "{ … }".to_owned(),
        Json::Array(items) if items.iter().any(Json::is_object) => "[ … ]".to_owned(),
        other => other.to_string(),
    }
}
