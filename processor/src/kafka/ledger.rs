//! Reading the ledger topic back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coderelay_runtime::flaw::{self, Flaw};
use coderelay_runtime::kafka::context;
use coderelay_schemas::ledger::{self, Entry, LedgerError};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::error;

use super::source::headers;
use super::{Identity, REQUEST_TIMEOUT};
use crate::ports::{Fault, Ledger};

/// A reader that stops making progress is replaced after this long.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// A [`Ledger`] over short-lived consumers: some that see committed records only, and one that sees how far the log goes.
pub struct KafkaLedger {
    identity: Identity,
}

impl KafkaLedger {
    /// The ledger of `identity.topics`.
    pub fn new(identity: &Identity) -> Self {
        Self { identity: identity.clone() }
    }

    fn reader(&self, isolation: &str) -> Result<Reader, Fault> {
        let mut config = self.identity.client.clone();
        // A follower may not know the end of the log yet.
        config.remove("client.rack");
        config
            // Required for manual assignment; nothing is ever committed or joined under this name.
            .set("group.id", format!("{}-ledger-reader", self.identity.group))
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            // The end is reached when a fetch has found nothing for so long; nothing is processed meanwhile.
            .set("fetch.wait.max.ms", "20")
            .set("auto.offset.reset", "earliest")
            .set("statistics.interval.ms", "0");
        config.create_with_context(Quiet).map_err(|error| Fault::restart("creating the ledger's reader", error))
    }

    /// Where the log of `partition` begins and where it ends now, once all that is before its end is committed or aborted.
    ///
    /// A former owner's transaction that is committed but whose marker has not reached this partition yet is thereby waited for, and so is
    /// one that was left open: the broker ends it within the transaction time-out.
    fn stable_end(&self, committed: &Reader, uncommitted: &Reader, partition: i32) -> Result<(i64, i64), Fault> {
        let topic = &self.identity.topics.ledger;
        let watermarks = |reader: &Reader| {
            reader
                .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
                .map_err(|error| Fault::restart("reading the ledger's watermarks", error))
        };
        let (_, end) = watermarks(uncommitted)?;
        let deadline = Instant::now() + self.identity.transaction_timeout + STALLED_AFTER;
        loop {
            let (low, stable) = watermarks(committed)?;
            if stable >= end || flaw::is(Flaw::ReplayBeforeOffsets) {
                return Ok((low, end.min(stable)));
            }
            if Instant::now() >= deadline || self.identity.stop.is_cancelled() {
                let stuck = format!("{topic}-{partition}: last stable offset {stable} stays below {end}");
                return Err(Fault::restart("waiting for the ledger's open transactions", stuck));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The first offset of each partition with a record at or after `since`; absent when there is none.
    fn offsets_since(
        &self,
        reader: &Reader,
        partitions: impl Iterator<Item = i32>,
        since: SystemTime,
    ) -> Result<BTreeMap<i32, i64>, Fault> {
        let millis = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            wanted
                .add_partition_offset(&self.identity.topics.ledger, partition, Offset::Offset(millis))
                .map_err(|error| Fault::restart("listing the ledger's partitions", error))?;
        }
        let found = reader
            .offsets_for_times(wanted, REQUEST_TIMEOUT)
            .map_err(|error| Fault::restart("looking up the start of the dedup window", error))?;
        let offset = |offset| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        Ok(found.elements().iter().filter_map(|e| Some((e.partition(), offset(e.offset())?))).collect())
    }

    /// Reads what is committed in every partition from the first to the second of its offsets, whatever of it the brokers have yet.
    ///
    /// A leader that has just been elected may not know yet how far the log goes, and lets a fetch end before (KIP-207 has it tell no end
    /// meanwhile, but fetches it answers): to have met an end is not to have reached the one that was told.
    ///
    /// # Errors
    /// When nothing comes for half a minute, an entry is of a later release, or the process is to stop.
    pub fn read(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        visit: &mut dyn FnMut(i32, &str, &[Entry]),
    ) -> Result<(), Fault> {
        if ranges.is_empty() {
            return Ok(());
        }
        let reader = self.reader("read_committed")?;
        let mut entries = Vec::new();
        let mut assignment = TopicPartitionList::with_capacity(ranges.len());
        for (partition, (start, _)) in ranges {
            assignment
                .add_partition_offset(&self.identity.topics.ledger, *partition, Offset::Offset(*start))
                .map_err(|error| Fault::restart("listing the ledger's partitions", error))?;
        }
        reader.assign(&assignment).map_err(|error| Fault::restart("assigning the ledger", error))?;
        let mut progress = Instant::now();
        loop {
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    progress = Instant::now();
                    match ledger::decode(message.payload().unwrap_or_default()) {
                        Ok(decoded) => {
                            entries.clear();
                            entries.extend(decoded);
                            let headers = message.headers().map(headers).unwrap_or_default();
                            // Earlier releases named no topic.
                            let topic = headers.last_str(ledger::SOURCE_TOPIC).unwrap_or(&self.identity.topics.packets);
                            visit(message.partition(), topic, &entries);
                        }
                        Err(error @ LedgerError::UnknownVersion(_)) => {
                            return Err(Fault::restart(
                                "replaying the ledger",
                                format!("{}: {error}", place(&message)),
                            ));
                        }
                        // No processor wrote that, so it says nothing of what was accepted.
                        Err(error) => error!(at = place(&message), %error, "a foreign record in the ledger is ignored"),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None if has_reached(&reader, ranges)? => break,
                _ if self.identity.stop.is_cancelled() => return Err(Fault::Restart("stopping".into())),
                _ if progress.elapsed() < STALLED_AFTER => {}
                Some(Err(error)) => return Err(Fault::restart("replaying the ledger", error)),
                None => return Err(Fault::Restart("replaying the ledger: no progress".into())),
            }
        }
        Ok(())
    }
}

type Reader = BaseConsumer<Quiet>;

/// The end of a partition is what a reader waits for, not an error.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            context::log_error(&error, reason);
        }
    }
}

impl ConsumerContext for Quiet {}

/// Whether every partition was read as far as it is to be. Markers of transactions count as read; one of which nothing is known has not been.
fn has_reached(reader: &Reader, ranges: &BTreeMap<i32, (i64, i64)>) -> Result<bool, Fault> {
    let positions = reader.position().map_err(|error| Fault::restart("asking how far the ledger was read", error))?;
    let elements = positions.elements();
    let reached = |partition: i32, end: i64| {
        let found = elements.iter().find(|element| element.partition() == partition);
        found.is_some_and(|element| matches!(element.offset(), Offset::Offset(offset) if offset >= end))
    };
    Ok(ranges.iter().all(|(partition, (_, end))| reached(*partition, *end)))
}

fn place(message: &BorrowedMessage<'_>) -> String {
    format!("{}-{}@{}", message.topic(), message.partition(), message.offset())
}

impl Ledger for KafkaLedger {
    fn replay(
        &mut self,
        from: &BTreeMap<i32, Option<i64>>,
        since: SystemTime,
        visit: &mut dyn FnMut(i32, &str, &[Entry]),
    ) -> Result<BTreeMap<i32, i64>, Fault> {
        let committed = self.reader("read_committed")?;
        let uncommitted = self.reader("read_uncommitted")?;
        let mut ends = BTreeMap::new();
        let mut lows = BTreeMap::new();
        for partition in from.keys().copied() {
            let (low, end) = self.stable_end(&committed, &uncommitted, partition)?;
            ends.insert(partition, end);
            lows.insert(partition, low);
        }
        let in_window = self.offsets_since(&committed, from.keys().copied(), since)?;
        let ranges: BTreeMap<_, _> = ends
            .iter()
            .filter_map(|(partition, end)| {
                // Nothing within the window: nothing to replay.
                let window = *in_window.get(partition)?;
                let known = from.get(partition).copied().flatten().unwrap_or(0);
                let start = window.max(known).max(lows[partition]);
                (start < *end).then_some((*partition, (start, *end)))
            })
            .collect();
        self.read(&ranges, visit)?;
        Ok(ends)
    }
}
