//! Ingest or the processor of a pipeline of one's own, to be started, stopped and treated badly.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use coderelay_devstack::{Launch, Process};

/// How long a service may take to leave.
pub(crate) const GRACE: Duration = Duration::from_secs(60);

/// A program that can be started late, and again.
#[derive(Clone, Debug)]
pub struct Service {
    name: &'static str,
    launch: Launch,
    process: Arc<Mutex<Option<Arc<Process>>>>,
}

impl Service {
    pub(crate) fn new(name: &'static str, launch: Launch) -> Self {
        Self { name, launch, process: Arc::default() }
    }

    /// What it is: `ingest` or `processor`.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id while it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.process().filter(|process| process.is_running()).map(|process| process.pid().cast_signed())
    }

    /// The process, once it was started.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it and does not wait. Nothing if it runs.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn start(&self) -> Result<Arc<Process>> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = &*process {
            process.start()?;
            return Ok(process.clone());
        }
        let started = Arc::new(Process::launch(self.launch.clone())?);
        *process = Some(started.clone());
        Ok(started)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time.
    pub async fn ready(&self) -> Result<()> {
        Ok(self.start()?.ready().await?)
    }

    /// Ends it in good order, if it runs.
    ///
    /// # Errors
    /// If it does not end well; with its last words.
    pub async fn stop(&self) -> Result<()> {
        let Some(process) = self.process().filter(|process| process.is_running()) else { return Ok(()) };
        let status = process.stop(GRACE).await?;
        if !status.success() {
            bail!("{} ended with {status}; its log ends:\n{}", process.name(), process.log_tail(10));
        }
        Ok(())
    }
}
