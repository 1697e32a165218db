//! The JSON schema of a configuration type, read along key paths: what a key may hold, in words and for coercion.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::{Map, Value, json};

use super::format::FORMATS;
use super::units::{DURATION_FORMAT, SIZE_FORMAT};

/// The whole schema, with every reference inlined and unknown keys refused in every table.
#[derive(Debug)]
pub(super) struct Schema(Value);

impl Schema {
    pub(super) fn of<T: JsonSchema>() -> Self {
        let generator = SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .with_transform(RecursiveTransform(refuse_unknown_keys))
            .with_transform(RecursiveTransform(name_textual_bounds))
            .into_generator();
        Self(generator.into_root_schema_for::<T>().to_value())
    }

    /// The schema of the whole configuration.
    pub(super) fn root(&self) -> Node<'_> {
        Node(&self.0)
    }

    /// The schema of one key; `None` for a key that does not exist.
    pub(super) fn at(&self, path: &[String]) -> Option<Node<'_>> {
        path.iter().try_fold(self.root(), |node, key| node.child(key))
    }

    /// Splits a dotted key. Below a map the rest is one key: the names of librdkafka properties contain dots themselves.
    pub(super) fn split(&self, dotted: &str, separator: &str) -> Vec<String> {
        let (mut path, mut rest, mut node) = (Vec::new(), dotted, Some(self.root()));
        while let Some((key, tail)) = rest.split_once(separator) {
            if node.is_some_and(Node::is_map) {
                break;
            }
            path.push(key.to_owned());
            node = node.and_then(|node| node.child(key));
            rest = tail;
        }
        path.push(rest.to_owned());
        path
    }

    /// A validator that also knows our formats.
    pub(super) fn validator(&self) -> Result<jsonschema::Validator, String> {
        FORMATS
            .iter()
            .fold(jsonschema::options(), |options, format| options.with_format(format.name, format.fits))
            .should_validate_formats(true)
            .build(&self.0)
            .map_err(|error| error.to_string())
    }
}

/// `deny_unknown_fields` for every struct, whether or not its author thought of it.
fn refuse_unknown_keys(schema: &mut schemars::Schema) {
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".into(), json!(false));
    }
}

/// The bounds of [`super::units`] are text, which `minimum` and `maximum` cannot be: garde checks them, here they are only named.
fn name_textual_bounds(schema: &mut schemars::Schema) {
    if schema.get("format").is_some_and(|format| format == DURATION_FORMAT || format == SIZE_FORMAT) {
        for (bound, named) in [("minimum", "x-minimum"), ("maximum", "x-maximum")] {
            if let Some(value) = schema.remove(bound) {
                schema.insert(named.into(), value);
            }
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "number");
        }
    }
}

/// The schema of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a>(&'a Value);

impl<'a> Node<'a> {
    /// The node itself and what its `anyOf`, `oneOf` and `allOf` offer, depth first.
    fn alternatives(self) -> Vec<Node<'a>> {
        let offered = ["anyOf", "oneOf", "allOf"]
            .iter()
            .filter_map(|keyword| self.0.get(keyword)?.as_array())
            .flatten()
            .flat_map(|schema| Node(schema).alternatives());
        std::iter::once(self).chain(offered).collect()
    }

    fn find<T>(self, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        self.alternatives().into_iter().find_map(|node| read(node.0))
    }

    fn types(self) -> Vec<&'a str> {
        let mut types = Vec::new();
        for node in self.alternatives() {
            match node.0.get("type") {
                Some(Value::String(name)) => types.push(name.as_str()),
                Some(Value::Array(names)) => types.extend(names.iter().filter_map(Value::as_str)),
                _ => {}
            }
        }
        types
    }

    /// The keys of a table with fixed keys, in the order of their declaration.
    pub(super) fn properties(self) -> Option<&'a Map<String, Value>> {
        self.find(|schema| schema.get("properties")?.as_object())
    }

    /// The schema of a key or of a list's item.
    pub(super) fn child(self, key: &str) -> Option<Node<'a>> {
        let named = self.find(|schema| schema.get("properties")?.get(key));
        let mapped = || self.find(|schema| schema.get("additionalProperties").filter(|schema| schema.is_object()));
        let item = || key.parse::<usize>().ok().and_then(|_| self.items()).map(|node| node.0);
        named.or_else(mapped).or_else(item).map(Node)
    }

    fn items(self) -> Option<Node<'a>> {
        self.find(|schema| schema.get("items")).map(Node)
    }

    /// A table whose keys the user chooses.
    pub(super) fn is_map(self) -> bool {
        self.properties().is_none() && self.types().contains(&"object")
    }

    /// Whether the key may be left unset.
    pub(super) fn is_optional(self) -> bool {
        self.types().contains(&"null")
    }

    /// The doc comment.
    pub(super) fn description(self) -> Option<&'a str> {
        self.0.get("description")?.as_str()
    }

    /// Whether the value is a secret or holds one.
    pub(super) fn holds_secret(self) -> bool {
        let own = self.find(|schema| schema.get("writeOnly")?.as_bool()).unwrap_or(false);
        own || self.properties().is_some_and(|keys| keys.values().any(|schema| Node(schema).holds_secret()))
    }

    /// The fixed values of an enumeration; empty when there are none.
    fn options(self) -> Vec<&'a Value> {
        let mut options = Vec::new();
        for node in self.alternatives() {
            options.extend(node.0.get("const"));
            options.extend(node.0.get("enum").and_then(Value::as_array).into_iter().flatten());
        }
        options.retain(|option| !option.is_null());
        options
    }

    /// What may stand here, in words.
    pub(super) fn allowed(self) -> String {
        if let Some(words) = self.find(|schema| schema.get("x-allowed")?.as_str()) {
            return words.to_owned();
        }
        let format = self.find(|schema| schema.get("format")?.as_str());
        if let Some(format) = FORMATS.iter().find(|known| Some(known.name) == format) {
            return format!("{}{}", format.words, self.range(",", "x-minimum", "x-maximum"));
        }
        let options = self.options();
        if !options.is_empty() {
            let options: Vec<_> = options.iter().map(ToString::to_string).collect();
            return format!("one of {}", options.join(", "));
        }
        match self.types().iter().find(|name| **name != "null").copied() {
            Some("boolean") => "true or false".to_owned(),
            Some("integer") => format!("a whole number{}", self.range(",", "minimum", "maximum")),
            Some("number") => format!("a number{}", self.range(",", "minimum", "maximum")),
            Some("array") => {
                let items = self.items().map_or_else(|| "any value".to_owned(), Node::allowed);
                format!("a list{}, each {items}", self.range(" of length", "minItems", "maxItems"))
            }
            Some("object") if self.is_map() => {
                let values = self.child("").map_or_else(|| "any value".to_owned(), Node::allowed);
                format!("a table of names, each with {values}")
            }
            Some("object") => "a table".to_owned(),
            Some("string") => format!("text{}{}", self.range(" of length", "minLength", "maxLength"), self.pattern()),
            _ => "any value".to_owned(),
        }
    }

    fn range(self, noun: &str, low: &'static str, high: &'static str) -> String {
        let bound = |keyword: &'static str| {
            self.find(|schema| {
                schema.get(keyword).map(|bound| bound.as_str().map_or_else(|| bound.to_string(), str::to_owned))
            })
        };
        match (bound(low), bound(high)) {
            (Some(low), Some(high)) => format!("{noun} from {low} to {high}"),
            (Some(low), None) => format!("{noun} at least {low}"),
            (None, Some(high)) => format!("{noun} at most {high}"),
            (None, None) => String::new(),
        }
    }

    fn pattern(self) -> String {
        let pattern = self.find(|schema| schema.get("pattern")?.as_str());
        pattern.map_or_else(String::new, |pattern| format!(" that matches {pattern}"))
    }

    /// Text from the environment or a flag as the type the schema asks for. What does not fit stays text, and the check then says so.
    pub(super) fn coerce(self, text: &str) -> Value {
        let types = self.types();
        let as_text = || Value::String(text.to_owned());
        if text.is_empty() && self.is_optional() {
            return Value::Null;
        }
        for name in types {
            let read = match name {
                "string" => Some(as_text()),
                "boolean" => text.parse::<bool>().ok().map(Value::Bool),
                "integer" => {
                    text.parse::<i64>().ok().map(Value::from).or_else(|| text.parse::<u64>().ok().map(Value::from))
                }
                "number" => text.parse::<f64>().ok().map(Value::from),
                "array" => Some(self.coerce_list(text)),
                "object" => inline(text).filter(Value::is_object),
                _ => None,
            };
            if let Some(value) = read {
                return value;
            }
        }
        as_text()
    }

    /// `["a", "b"]` as JSON or TOML, or plain `a,b`.
    fn coerce_list(self, text: &str) -> Value {
        if let Some(list) = inline(text).filter(Value::is_array) {
            return list;
        }
        let item = |text: &str| self.items().map_or_else(|| Value::from(text), |node| node.coerce(text));
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect()
    }
}

/// A list or table written in one line, as JSON or as TOML.
fn inline(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().or_else(|| {
        let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
        serde_json::to_value(table.get("value")?).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::JsonSchema;

    use super::*;
    use crate::config::HumanDuration;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is read")]
    struct Sample {
        flag: bool,
        count: Option<u16>,
        ratio: f64,
        names: Vec<String>,
        #[schemars(inner(range(min = 1)))]
        ports: Vec<u16>,
        properties: BTreeMap<String, String>,
        wait: HumanDuration,
        #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(90)))]
        bounded: HumanDuration,
        mode: Mode,
        nested: Option<Nested>,
    }

    #[derive(JsonSchema)]
    #[serde(rename_all = "lowercase")]
    #[expect(dead_code, reason = "only its schema is read")]
    enum Mode {
        /// Quick.
        Fast,
        /// Careful.
        Slow,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is read")]
    struct Nested {
        depth: u8,
    }

    fn coerced(key: &str, text: &str) -> Value {
        Schema::of::<Sample>().at(&[key.to_owned()]).unwrap().coerce(text)
    }

    #[test]
    fn text_becomes_what_the_schema_asks_for() {
        assert_eq!(coerced("flag", "true"), json!(true));
        assert_eq!(coerced("count", "7"), json!(7));
        assert_eq!(coerced("count", ""), Value::Null);
        assert_eq!(coerced("ratio", "0.5"), json!(0.5));
        assert_eq!(coerced("names", "a, b"), json!(["a", "b"]));
        assert_eq!(coerced("names", r#"["a,b"]"#), json!(["a,b"]));
        assert_eq!(coerced("ports", "1,2"), json!([1, 2]));
        assert_eq!(coerced("properties", r#"{"linger.ms":"5"}"#), json!({"linger.ms": "5"}));
        assert_eq!(coerced("properties", r#"{ "linger.ms" = "5" }"#), json!({"linger.ms": "5"}));
        assert_eq!(coerced("wait", "15s"), json!("15s"));
        assert_eq!(coerced("nested", "{depth = 3}"), json!({"depth": 3}));
        assert_eq!(coerced("count", "many"), json!("many"), "left as it is for the check to name");
    }

    #[test]
    fn what_is_allowed_reads_as_words() {
        let schema = Schema::of::<Sample>();
        let allowed = |key: &str| schema.at(&[key.to_owned()]).unwrap().allowed();
        assert_eq!(allowed("flag"), "true or false");
        assert_eq!(allowed("count"), "a whole number, from 0 to 65535");
        assert_eq!(allowed("mode"), r#"one of "fast", "slow""#);
        assert_eq!(allowed("names"), "a list, each text");
        assert_eq!(allowed("wait"), r#"a duration such as "250ms", "15s" or "1h 30m""#);
        assert_eq!(allowed("bounded"), r#"a duration such as "250ms", "15s" or "1h 30m", from 1s to 1m 30s"#);
        assert_eq!(allowed("nested"), "a table");
        assert_eq!(allowed("properties"), "a table of names, each with text");
    }

    #[test]
    fn below_a_map_the_rest_of_a_path_is_one_key() {
        let schema = Schema::of::<Sample>();
        assert_eq!(schema.split("properties.linger.ms", "."), ["properties", "linger.ms"]);
        assert_eq!(schema.split("nested.depth", "."), ["nested", "depth"]);
        assert_eq!(schema.split("no.such.key", "."), ["no", "such", "key"]);
    }
}
