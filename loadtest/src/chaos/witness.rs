//! A data team: reads the duplicate-free topic while it is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use rdkafka::ClientConfig;

use super::topic::{self, Record};

const POLL: Duration = Duration::from_millis(50);

/// A reader on a thread of its own.
#[derive(Debug)]
pub struct Witness {
    finish: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Record>>,
}

impl Witness {
    /// Reads `topic` from its beginning on.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn begin(config: &ClientConfig, topic: &str) -> Result<Self> {
        let consumer = topic::consumer(config.clone(), topic)?;
        let finish = Arc::new(AtomicBool::new(false));
        let finished = finish.clone();
        let thread = thread::Builder::new().name("witness".to_owned()).spawn(move || {
            let mut records = Vec::new();
            loop {
                match consumer.poll(POLL) {
                    Some(Ok(message)) => records.push(Record::of(&message)),
                    None if finished.load(Ordering::Relaxed) => return records,
                    // A partition's end for now, or what the client tries again by itself.
                    Some(Err(_)) | None => {}
                }
            }
        })?;
        Ok(Self { finish, thread })
    }

    /// What it has read, once nothing comes any more; after a second at rest, else at once.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn finish(self, at_rest: bool) -> Result<Vec<Record>> {
        if at_rest {
            thread::sleep(Duration::from_secs(1));
        }
        self.finish.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the witness's thread panicked"))
    }
}
