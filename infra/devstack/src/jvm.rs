//! How the servers' JVMs run.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::folder::remove;
use crate::launch::Launch;

/// What a server's JVM spends on compiling itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Little: its first compiler alone (C1). Kafka and Cassandra start for about half the CPU time.
    #[default]
    Quick,
    /// What production spends: for what is measured, or stays.
    Full,
}

impl Jit {
    /// The option of `java` for it.
    fn option(self) -> Option<&'static str> {
        match self {
            Self::Quick => Some("-XX:TieredStopAtLevel=1"),
            Self::Full => None,
        }
    }
}

/// A launch of `java` as `name` in `dir`. What its libraries unpack stays there: one that is killed leaves nothing in `/tmp`.
pub(crate) fn launch(name: impl Into<String>, java: &Path, jit: Jit, dir: &Path) -> Result<Launch> {
    let temporary = dir.join("tmp");
    remove(&temporary)?;
    fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
    let options = ["-XX:-UsePerfData".to_owned(), format!("-Djava.io.tmpdir={}", temporary.display())];
    Ok(Launch::new(name, java, dir).args(jit.option()).args(options))
}
