//! The thread that follows the mirror, and believes it where this region's own topic agrees.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coderelay_runtime::CancellationToken;
use tokio_util::sync::DropGuard;

use crate::mirror::Mirror;
use crate::producer::Producer;

/// How often the thread looks whether it is to end.
const POLL: Duration = Duration::from_millis(100);

/// How long this region's brokers may take to say where a partition ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What was not believed of a partition is not looked into again for so long: it is told dozens of times a second.
const DISBELIEF: Duration = Duration::from_secs(1);

/// Follows the other region on a thread of its own until the guard is dropped. `producer` says what exists in this one.
///
/// # Errors
/// If there can be no thread.
pub fn follow(mirror: Arc<Mirror>, producer: Arc<Producer>) -> io::Result<DropGuard> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    std::thread::Builder::new().name("mirror".to_owned()).spawn(move || {
        let mut follower = Follower { mirror, producer, disbelieved: HashMap::new() };
        while !stopped.is_cancelled() {
            if let Some((partition, offset)) = follower.mirror.poll(POLL) {
                follower.hear(partition, offset);
            }
        }
    })?;
    Ok(stop.drop_guard())
}

struct Follower {
    mirror: Arc<Mirror>,
    producer: Arc<Producer>,
    /// Partitions of which something was not believed, and when that was last looked into.
    disbelieved: HashMap<i32, Instant>,
}

impl Follower {
    fn hear(&mut self, partition: i32, offset: Option<i64>) {
        match offset.filter(|offset| !self.mirror.doubts(partition, *offset) || self.exists(partition, *offset)) {
            Some(offset) => self.mirror.hear(partition, offset),
            None => self.mirror.forget(partition),
        }
    }

    /// Whether this region's topic has such a record. If it cannot be asked: no.
    fn exists(&mut self, partition: i32, offset: i64) -> bool {
        let now = Instant::now();
        let known = self.disbelieved.get(&partition).copied();
        if known.is_some_and(|looked| now.duration_since(looked) < DISBELIEF) {
            return false;
        }
        let end = self.producer.end(partition, END_TIMEOUT);
        if end.as_ref().is_ok_and(|end| offset < *end) {
            self.disbelieved.remove(&partition);
            return true;
        }
        self.disbelieved.insert(partition, now);
        if known.is_none() {
            tracing::warn!(
                partition,
                offset,
                ?end,
                "the mirror tells of a record that is not known here: not believed"
            );
        }
        false
    }
}
