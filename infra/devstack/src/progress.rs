//! What a start tells whoever waits for it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One step of a start.
#[derive(Debug, Clone)]
pub enum Event {
    /// Jars are being fetched; happens once per user and version.
    Fetching {
        /// `kafka` or `cassandra`.
        product: &'static str,
        /// What is being fetched right now.
        detail: String,
    },
    /// A process was started.
    Starting {
        /// Its name in the stack.
        name: String,
        /// Its process id.
        pid: u32,
        /// Its log file.
        log: PathBuf,
    },
    /// A process that is looked after is being ended and started again.
    Restarting {
        /// Its name in the stack.
        name: String,
        /// Why.
        reason: String,
    },
    /// A process answers as it should.
    Ready {
        /// Its name in the stack.
        name: String,
        /// Since it was started.
        after: Duration,
    },
}

/// Who is told of each [`Event`].
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(&Event) + Send + Sync>);

impl Observer {
    /// Calls `listener` with each event, from whichever thread it happens on.
    pub fn new(listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// Tells the listener.
    pub fn tell(&self, event: &Event) {
        (self.0)(event);
    }
}

/// Logs each event.
impl Default for Observer {
    fn default() -> Self {
        Self::new(|event| match event {
            Event::Fetching { product, detail } => tracing::info!(product, detail, "fetching"),
            Event::Starting { name, pid, .. } => tracing::info!(name, pid, "starting"),
            Event::Restarting { name, reason } => tracing::warn!(name, reason, "restarting"),
            Event::Ready { name, after } => tracing::info!(name, ?after, "ready"),
        })
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Observer")
    }
}
