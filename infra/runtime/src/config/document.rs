//! A configuration as TOML: the one in effect, and the reference of every key.

use serde_json::{Map, Value as Json};

use super::Config;
use super::merge::prune;
use super::schema::{Node, Schema};
use super::source::ENVIRONMENT_PREFIX;

/// The configuration as TOML, every key in the order of its declaration, secrets redacted.
pub fn show<T: Config>(config: &T) -> String {
    Writer { schema: &Schema::of::<T>(), comments: false, out: String::new() }.write(config)
}

/// A TOML file with every key at its default, and with its meaning, what is allowed and its environment variable as comments.
/// It is itself a valid configuration file.
pub fn document<T: Config>() -> String {
    Writer { schema: &Schema::of::<T>(), comments: true, out: String::new() }.write(&T::default())
}

struct Writer<'a> {
    schema: &'a Schema,
    comments: bool,
    out: String,
}

impl Writer<'_> {
    fn write<T: Config>(mut self, config: &T) -> String {
        let mut json = serde_json::to_value(config).unwrap_or_default();
        prune(&mut json);
        if self.comments {
            self.comment(self.schema.root().description());
        }
        self.table(self.schema.root(), json.as_object(), &mut Vec::new());
        self.out
    }

    /// Plain keys first: in TOML whatever follows a `[header]` belongs to it.
    fn table(&mut self, node: Node<'_>, values: Option<&Map<String, Json>>, path: &mut Vec<String>) {
        let Some(keys) = node.properties() else { return };
        let value_of = |key: &str| values.and_then(|values| values.get(key));
        let children = || keys.keys().filter_map(|key| Some((key, node.child(key)?)));
        for (key, child) in children().filter(|(_, child)| child.properties().is_none()) {
            path.push(key.clone());
            self.key(child, value_of(key), path);
            path.pop();
        }
        for (key, child) in children().filter(|(_, child)| child.properties().is_some()) {
            let value = value_of(key);
            if value.is_none() && !self.comments {
                continue;
            }
            path.push(key.clone());
            if !self.out.is_empty() {
                self.out.push('\n');
            }
            if self.comments {
                self.comment(child.description());
            }
            let unset = if value.is_none() { "# " } else { "" };
            self.out.push_str(&format!("{unset}[{}]\n", path.join(".")));
            self.table(child, value.and_then(Json::as_object), path);
            path.pop();
        }
    }

    fn key(&mut self, node: Node<'_>, value: Option<&Json>, path: &[String]) {
        let key = path.last().map_or("", String::as_str);
        if self.comments {
            self.comment(node.description());
            let variable = format!("{ENVIRONMENT_PREFIX}{}", path.join("__").to_ascii_uppercase());
            self.comment(Some(&format!("Allowed: {}. Environment: {variable}", node.allowed())));
        }
        match value.and_then(to_toml) {
            Some(value) => self.out.push_str(&format!("{key} = {value}\n")),
            None if self.comments => self.out.push_str(&format!("# {key} =\n")),
            None => {}
        }
    }

    fn comment(&mut self, text: Option<&str>) {
        for line in text.into_iter().flat_map(str::lines) {
            self.out.push_str(format!("# {line}").trim_end());
            self.out.push('\n');
        }
    }
}

/// One value on one line.
fn to_toml(json: &Json) -> Option<String> {
    toml::Value::try_from(json).ok().map(|value| value.to_string())
}
