//! A data team: reads the duplicate-free topic while it is written.

use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Result, anyhow};
use rdkafka::Offset;

use super::region::Region;
use super::topic::{PATIENCE, Record};
use crate::reader::Cursor;

/// A reader on a thread of its own.
#[derive(Debug)]
pub struct Witness {
    finish: Sender<Instant>,
    thread: JoinHandle<Result<Vec<Record>>>,
}

impl Witness {
    /// Reads the topic of `region` from its beginning on.
    ///
    /// # Errors
    /// When the brokers cannot be reached or have no such topic.
    pub fn begin(region: &Region<'_>) -> Result<Self> {
        let topic = &region.identity.topics.deduped;
        let cursor = Cursor::new(Offset::Beginning, &region.stack.bootstrap_servers(), topic)?;
        let (finish, finished) = channel();
        let thread = thread::Builder::new().name("witness".to_owned()).spawn(move || {
            let mut records = Vec::new();
            cursor.run(&finished, &mut |message| records.push(Record::of(message)))?;
            Ok(records)
        })?;
        Ok(Self { finish, thread })
    }

    /// What it has read by the end that the topic has now.
    ///
    /// # Errors
    /// When a transaction stays open there, or records could not be read, now or before.
    pub fn finish(self) -> Result<Vec<Record>> {
        // Nobody listens if the thread has failed already; then it has an error to tell.
        let _ = self.finish.send(Instant::now() + PATIENCE);
        self.thread.join().map_err(|_| anyhow!("the witness's thread panicked"))?
    }
}
