//! One configuration from a TOML file, the environment and flags, in that rising order, checked as a whole.
//!
//! ```text
//! defaults ◀ file ◀ CODERELAY_SECTION__KEY ◀ --set section.key=value ─▶ schema ─▶ types ─▶ ranges and rules ─▶ T | every mistake
//! ```

pub mod cli;
pub mod source;
mod merge;
mod schema;
mod format;
pub mod units;
pub mod secret;
mod check;
mod words;
pub mod mistake;
mod document;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use cli::{Cli, ConfigCommand};
pub use document::document;
pub use mistake::{Mistake, Mistakes};
pub use secret::Secret;
pub use source::{Assignment, Sources};
pub use units::{HumanDuration, HumanSize};

use check::Check;
use merge::Merged;
use schema::Schema;

/// Exit code of a process whose configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const EX_CONFIG: u8 = 78;

/// What a configuration type derives: `Serialize, Deserialize, JsonSchema, garde::Validate` and `Default`.
///
/// Its doc comments are the operator's documentation. Field names are the keys; use [`HumanDuration`] and [`HumanSize`] for values
/// with a unit and [`Secret`] for secrets. Unknown keys are refused whether or not `deny_unknown_fields` is given.
pub trait Config:
    Serialize + DeserializeOwned + schemars::JsonSchema + garde::Validate<Context = ()> + Default
{
}

impl<T> Config for T where
    T: Serialize + DeserializeOwned + schemars::JsonSchema + garde::Validate<Context = ()> + Default
{
}

/// Merges the sources over the defaults and checks the result.
///
/// # Errors
/// All mistakes at once: unreadable sources, unknown keys, wrong types, values out of range, rules across keys.
pub fn load<T: Config>(sources: &Sources) -> Result<T, Mistakes> {
    read(sources).map(|(config, _)| config)
}

/// The configuration as TOML, every key in the order of its declaration, secrets redacted.
pub fn show<T: Config>(config: &T) -> String {
    document::show(config, |_| None)
}

fn read<T: Config>(sources: &Sources) -> Result<(T, Merged), Mistakes> {
    let internal = |error: &dyn std::fmt::Display| {
        let allowed = format!("cannot be assembled: {error}");
        Mistakes(vec![Mistake { key: String::new(), value: None, allowed, origin: "default".to_owned() }])
    };
    let schema = Schema::of::<T>();
    let mut mistakes = Vec::new();
    let layers = sources.layers(&schema, &mut mistakes);
    let defaults = serde_json::to_value(T::default()).map_err(|error| internal(&error))?;
    let merged = Merged::new(defaults, layers).map_err(|error| internal(&error))?;
    Check::new(&schema, merged, mistakes).run()
}
