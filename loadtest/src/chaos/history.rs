//! What happened, as its doers saw it: every packet sent and answered, every fault, every life of a process.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::plan::Version;

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Seconds since the world began.
    pub at: f64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A producer sends a packet.
    Sent {
        /// Its number.
        producer: usize,
        /// What.
        version: Version,
    },
    /// It was answered: Kafka has it.
    Committed {
        /// What.
        version: Version,
        /// By the ingest of this region.
        region: usize,
        /// Where in its topic.
        partition: i32,
        /// Where there.
        offset: i64,
    },
    /// It was answered otherwise, or not at all.
    Failed {
        /// What.
        version: Version,
        /// The answer.
        answer: String,
    },
    /// Something happened to a process.
    Note {
        /// What.
        text: String,
    },
}

/// The history of one world. Shared by all that make it.
#[derive(Debug)]
pub struct History {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

impl History {
    /// Begins now.
    pub fn begin() -> Self {
        Self { began: Instant::now(), events: Mutex::default() }
    }

    /// Adds what happens now.
    pub fn add(&self, what: What) {
        let mut events = self.lock();
        events.push(Event { at: self.began.elapsed().as_secs_f64(), what });
    }

    /// Adds what happens to a process.
    pub fn note(&self, text: impl Into<String>) {
        self.add(What::Note { text: text.into() });
    }

    /// All of it so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Writes it to `file`, one JSON object a line.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let lines = self.lock().iter().map(serde_json::to_string).collect::<serde_json::Result<Vec<_>>>()?;
        std::fs::write(file, lines.join("\n") + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    /// Whether it belongs into the history of packet `packet`: it is the packet's, or befell a process.
    pub fn concerns(&self, packet: u32) -> bool {
        match &self.what {
            What::Sent { version, .. } | What::Committed { version, .. } | What::Failed { version, .. } => {
                version.packet == packet
            }
            What::Note { .. } => true,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s  ", self.at)?;
        match &self.what {
            What::Sent { producer, version } => write!(f, "producer {producer} sends {version}"),
            What::Committed { version, region, partition, offset } => {
                write!(f, "{version} committed in region {region} at {partition}@{offset}")
            }
            What::Failed { version, answer } => write!(f, "{version} not committed: {answer}"),
            What::Note { text } => f.write_str(text),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            0 => write!(f, "packet {}", self.packet),
            other => write!(f, "packet {} with content {other}", self.packet),
        }
    }
}
