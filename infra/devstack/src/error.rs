//! What can go wrong while a stack is started, driven or stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the stack. Each says which node it is about and where to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program the stack is made of is not installed.
    #[error("{program} is missing: `infra/dev setup` installs it, or on Debian and Ubuntu `{install}`")]
    MissingProgram {
        /// The program that was looked for.
        program: String,
        /// One command that installs it.
        install: &'static str,
    },
    /// Maven could not fetch the jars of a product.
    #[error("the jars of {product} could not be fetched:\n{output}")]
    Jars {
        /// `kafka` or `cassandra`.
        product: &'static str,
        /// The last lines Maven printed.
        output: String,
    },
    /// A process has ended, or ended before it was ready.
    #[error("{name} ended ({status}); the last lines of {}:\n{tail}", log.display())]
    Died {
        /// The process's name in the stack.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A process runs, but does not answer as it should.
    #[error("{name} is not ready after {waited:.0?}: {reason}; its log is {}:\n{tail}", log.display())]
    NotReady {
        /// The process's name in the stack.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last answer to the question whether it is ready.
        reason: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A process did not leave after SIGTERM.
    #[error("{name} still runs {waited:.0?} after SIGTERM")]
    StillRunning {
        /// The process's name in the stack.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A verb needs a running process and this one has ended.
    #[error("{name} is not running")]
    NotRunning {
        /// The process's name in the stack.
        name: String,
    },
    /// Topics could not be created.
    #[error("topic {topic}: {reason}")]
    Topic {
        /// The topic's name.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// A Kafka client could not be made or asked in vain.
    #[error("kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// A CQL statement failed.
    #[error("cql: {0}")]
    Cql(String),
    /// The operating system refused something.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file, folder or program concerned.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }
}
