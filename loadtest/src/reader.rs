//! Reads a topic as a data team does, `read_committed`, and shows every record to the audit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use coderelay_runtime::kafka;
use coderelay_schemas::headers;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::audit::{Audit, Place};
use crate::corpus::Found;

/// How long one question to a broker may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a reader without records notices that it is to finish.
const POLL: Duration = Duration::from_millis(100);

/// A reader on a thread of its own, from the topic's end or beginning of that moment on. Dropping it stops it.
#[derive(Debug)]
pub struct TopicReader {
    seen: Arc<AtomicU64>,
    finish: Sender<Instant>,
    thread: JoinHandle<Result<()>>,
}

impl TopicReader {
    /// Reads what is committed to `topic` from now on. `on_record` is told the number of each packet of the audit when its
    /// first record comes in. Blocks while it asks for the offsets.
    ///
    /// # Errors
    /// When the brokers cannot be reached or have no such topic.
    pub fn start(
        bootstrap: &str,
        topic: &str,
        audit: Arc<Audit>,
        on_record: impl FnMut(u64, Instant) + Send + 'static,
    ) -> Result<Self> {
        Self::start_at(Offset::End, bootstrap, topic, audit, on_record)
    }

    /// The same, from the first record that the topic still has.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at_beginning(
        bootstrap: &str,
        topic: &str,
        audit: Arc<Audit>,
        on_record: impl FnMut(u64, Instant) + Send + 'static,
    ) -> Result<Self> {
        Self::start_at(Offset::Beginning, bootstrap, topic, audit, on_record)
    }

    fn start_at(
        start: Offset,
        bootstrap: &str,
        topic: &str,
        audit: Arc<Audit>,
        on_record: impl FnMut(u64, Instant) + Send + 'static,
    ) -> Result<Self> {
        let cursor = Cursor::new(start, bootstrap, topic).with_context(|| format!("cannot read {topic}"))?;
        let seen = Arc::new(AtomicU64::new(0));
        let (finish, finished) = channel();
        let mut visit = Visitor { audit, on_record, seen: Arc::clone(&seen) };
        let read = move || cursor.run(&finished, &mut |message| visit.visit(message));
        let thread = thread::Builder::new().name("topic-reader".into()).spawn(read)?;
        Ok(Self { seen, finish, thread })
    }

    /// Packets of the audit that were seen so far, each counted once.
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Reads to the end that the topic has now, waiting for transactions that are still open there, and stops. Blocks for
    /// at most about `deadline`.
    ///
    /// # Errors
    /// When that took too long, or when records could not be read, now or before.
    pub fn finish(self, deadline: Duration) -> Result<()> {
        // Nobody listens if the thread has failed already; then it has an error to tell.
        let _ = self.finish.send(Instant::now() + deadline);
        self.thread.join().map_err(|_| anyhow!("the reader's thread panicked"))?
    }
}

/// What happens to a record.
struct Visitor<F> {
    audit: Arc<Audit>,
    on_record: F,
    seen: Arc<AtomicU64>,
}

impl<F: FnMut(u64, Instant)> Visitor<F> {
    fn visit(&mut self, message: &BorrowedMessage<'_>) {
        let now = Instant::now();
        if let Some(n) = self.enter(message) {
            self.seen.fetch_add(1, Relaxed);
            (self.on_record)(n, now);
        }
    }

    fn enter(&self, message: &BorrowedMessage<'_>) -> Option<u64> {
        let at = Place { partition: message.partition(), offset: message.offset() };
        let difference = match CodePacket::decode(message.payload().unwrap_or_default()) {
            Ok(packet) if self.audit.corpus().number(&packet.packet_id).is_some() => {
                return self.audit.published(message.key(), &Found::from(&packet), at);
            }
            Ok(packet) => format!("packet_id is {:?}", hex::encode(&packet.packet_id)),
            Err(error) => format!("cannot be decoded ({error})"),
        };
        self.audit.damaged(&id_in_headers(message), difference, at)
    }
}

fn id_in_headers(message: &BorrowedMessage<'_>) -> Vec<u8> {
    let headers = message.headers().into_iter().flat_map(kafka::headers);
    let id = headers.flatten().filter(|header| header.key == headers::PACKET_ID).find_map(|header| header.value);
    id.and_then(|id| hex::decode(id).ok()).unwrap_or_default()
}

/// First offset and end of a partition. One that was just made has a leader before the leader knows; it is asked again.
pub(crate) fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> KafkaResult<(i64, i64)> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT) {
            Err(_) if Instant::now() < deadline => thread::sleep(POLL),
            answer => return answer,
        }
    }
}

/// Shows every record that is committed to `topic` to `visit`, from the first to the end that the topic has now.
///
/// # Errors
/// When that takes longer than `patience`, or records cannot be read.
pub(crate) fn read_all(
    bootstrap: &str,
    topic: &str,
    patience: Duration,
    visit: &mut impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    Cursor::new(Offset::Beginning, bootstrap, topic)?.read_to_end(Instant::now() + patience, visit)
}

/// How far each partition has been read.
pub(crate) struct Cursor {
    consumer: BaseConsumer,
    bootstrap: String,
    topic: String,
    /// By partition, the offset after the last record.
    next: Vec<i64>,
}

impl Cursor {
    pub(crate) fn new(start: Offset, bootstrap: &str, topic: &str) -> Result<Self> {
        let consumer = consumer(bootstrap, "read_committed")?;
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        ensure!(partitions > 0, "there is no such topic on {bootstrap}");

        let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
        let mut cursor = Self { consumer, bootstrap, topic, next: Vec::new() };
        for partition in 0..partitions as i32 {
            let (low, stable) = watermarks(&cursor.consumer, &cursor.topic, partition)?;
            cursor.next.push(if start == Offset::Beginning { low } else { stable });
        }
        Ok(cursor)
    }

    /// Takes every partition up where it was left.
    fn assign(&self) -> Result<()> {
        let mut assignment = TopicPartitionList::with_capacity(self.next.len());
        for (partition, next) in (0..).zip(&self.next) {
            assignment.add_partition_offset(&self.topic, partition, Offset::Offset(*next))?;
        }
        self.consumer.assign(&assignment).context("cannot assign the partitions")
    }

    /// Reads until told to finish, then to the end.
    pub(crate) fn run(
        mut self,
        finish: &Receiver<Instant>,
        visit: &mut impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<()> {
        self.assign()?;
        loop {
            match finish.try_recv() {
                Ok(deadline) => {
                    // This client may have lost every broker for ever: see `Statistics::is_stranded`.
                    self.consumer = consumer(&self.bootstrap, "read_committed")?;
                    return self.read_to_end(deadline, visit);
                }
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => {}
            }
            self.poll(visit)?;
        }
    }

    /// Reads to the end that every partition has now.
    fn read_to_end(&mut self, deadline: Instant, visit: &mut impl FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        self.await_stable(deadline)?;
        // From here on: that a partition's end was reached counts only if it is said after this.
        self.assign()?;
        let mut unfinished: BTreeSet<i32> = (0..self.next.len() as i32).collect();
        while !unfinished.is_empty() {
            if let Some(partition) = self.poll(visit)? {
                unfinished.remove(&partition);
            }
            if Instant::now() > deadline {
                bail!("partitions {unfinished:?} of {} were not read to their ends in time", self.topic);
            }
        }
        Ok(())
    }

    /// Waits until the last stable offset of every partition has reached the end that its log has now: until then a
    /// transaction is open, or is ended and its marker still on its way.
    fn await_stable(&self, deadline: Instant) -> Result<()> {
        // Clients that fetch nothing: a broker answers a connection's requests in turn, and a fetch that finds nothing waits.
        let clients = [consumer(&self.bootstrap, "read_uncommitted")?, consumer(&self.bootstrap, "read_committed")?];
        for partition in 0..self.next.len() as i32 {
            let mut end = None;
            // A broker that does not answer is asked again.
            while !self.is_stable(partition, &clients, &mut end).unwrap_or(false) {
                if Instant::now() > deadline {
                    bail!("{}-{partition} is not stable up to its end {end:?}: a transaction stays open", self.topic);
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Whether the last stable offset has reached `end`, which is looked up first if it is not known.
    fn is_stable(
        &self,
        partition: i32,
        [uncommitted, committed]: &[BaseConsumer; 2],
        end: &mut Option<i64>,
    ) -> KafkaResult<bool> {
        let watermark = |consumer: &BaseConsumer| {
            consumer.fetch_watermarks(&self.topic, partition, REQUEST_TIMEOUT).map(|(_, high)| high)
        };
        let known = end.map_or_else(|| watermark(uncommitted), Ok)?;
        *end = Some(known);
        Ok(watermark(committed)? >= known)
    }

    /// Takes one record; the partition whose end was reached, if that is what happened instead.
    fn poll(&mut self, visit: &mut impl FnMut(&BorrowedMessage<'_>)) -> Result<Option<i32>> {
        match self.consumer.poll(POLL) {
            Some(Ok(message)) => {
                let next = &mut self.next[message.partition() as usize];
                // What comes again, after a broker's failure say, was visited.
                if message.offset() >= *next {
                    *next = message.offset() + 1;
                    visit(&message);
                }
                Ok(None)
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => Ok(Some(partition)),
            Some(Err(error)) if is_final(&error) => Err(error).with_context(|| format!("cannot read {}", self.topic)),
            // The client tries again by itself.
            Some(Err(_)) | None => Ok(None),
        }
    }
}

/// Whether reading on would leave a gap or fail for ever. A topic may be unknown for a moment to a broker that restarts.
fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, Fatal, OffsetOutOfRange, TopicAuthorizationFailed};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| [AutoOffsetReset, Fatal, OffsetOutOfRange, TopicAuthorizationFailed].contains(&code))
}

fn consumer(bootstrap: &str, isolation: &str) -> Result<BaseConsumer> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // Required for manual assignment; nothing is ever committed or joined under this name.
        .set("group.id", "coderelay-loadtest")
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // An end is reached only when a fetch has found nothing for so long.
        .set("fetch.wait.max.ms", "100")
        .set("auto.offset.reset", "error")
        .create();
    consumer.context("cannot make a consumer")
}
