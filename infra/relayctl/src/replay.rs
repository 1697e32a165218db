//! Dead letters on their way back to the topics they came from.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::ops::ControlFlow;

use anyhow::Context as _;
use coderelay_schemas::dlq::DlqReason;
use governor::{Quota, RateLimiter};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::connect::Connection;
use crate::dead_letter::{DeadLetter, Origin, Place};
use crate::dlq::{Filter, scan};
use crate::exit::Exit;
use crate::output::{Output, count};
use crate::progress::{Progress, remark};

/// Dead letters read before they are written back.
const READ_AHEAD: usize = 64;
/// Records written and not yet acknowledged.
const ON_THEIR_WAY: usize = 64;
/// `message.max.bytes` of the producer.
const MESSAGE_MAX_BYTES: &str = "8388608";

/// What to replay, and how.
pub(crate) struct Replay {
    pub(crate) filter: Filter,
    /// Only these, where any is named.
    pub(crate) places: Vec<Place>,
    /// Records per second.
    pub(crate) rate: NonZeroU32,
    /// Whether to write at all.
    pub(crate) yes: bool,
}

/// What a replay did; also its JSON.
#[derive(Debug, Default, Serialize)]
struct Tally {
    dry_run: bool,
    /// Written back, or in a dry run: would be.
    replayed: u64,
    /// Left out, for their id belongs to other content.
    id_conflicts: u64,
    /// Left out, for their headers do not say where they came from.
    without_origin: u64,
    /// Left out, for the same record was dead-lettered more than once, as after a replay that did not help.
    repeats: u64,
    #[serde(skip)]
    seen: HashSet<blake3::Hash>,
    reasons: BTreeMap<&'static str, u64>,
    topics: BTreeMap<String, u64>,
}

impl Replay {
    /// Reads what is dead-lettered now and writes what matches back to where it came from.
    pub(crate) async fn run(self, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
        let mut done = Tally { dry_run: !self.yes, ..Tally::default() };
        let mut writer = if self.yes { Some(Writer::connect(connection)?) } else { None };
        let pace = RateLimiter::direct(Quota::per_second(self.rate));
        let mut progress = Progress::new("replaying", 0);

        let (letters, mut queue) = mpsc::channel(READ_AHEAD);
        let scanning = tokio::task::spawn_blocking({
            let (filter, connection) = (self.filter.clone(), connection.clone());
            move || {
                scan(&filter, &connection, |letter| {
                    let gone = letters.blocking_send(letter).is_err();
                    Ok(if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })
            }
        });
        while let Some(letter) = queue.recv().await {
            let Some(origin) = self.judge(&letter, &mut done) else { continue };
            if let Some(writer) = &mut writer {
                pace.until_ready().await;
                writer.send(&letter, &origin).await?;
            }
            progress.advance(1);
        }
        scanning.await??;
        if let Some(writer) = writer {
            writer.finish().await?;
        }
        drop(progress);
        self.report(&done, output)
    }

    /// Where a dead letter goes, if it goes.
    fn judge(&self, letter: &DeadLetter, done: &mut Tally) -> Option<Origin> {
        if !self.places.is_empty() && !self.places.contains(&letter.place) {
            return None;
        }
        let reason = letter.reason();
        if reason == Some(DlqReason::IdConflict) && !self.insists() {
            done.id_conflicts += 1;
            return None;
        }
        let Some(origin) = letter.origin() else {
            done.without_origin += 1;
            return None;
        };
        if !done.seen.insert(letter.identity()) {
            done.repeats += 1;
            return None;
        }
        done.replayed += 1;
        *done.reasons.entry(reason.map_or("unknown", DlqReason::as_str)).or_default() += 1;
        *done.topics.entry(origin.topic.clone()).or_default() += 1;
        Some(origin)
    }

    /// Whether a conflict is replayed although it conflicts again.
    fn insists(&self) -> bool {
        self.filter.reason.contains(&DlqReason::IdConflict)
    }

    fn report(&self, done: &Tally, output: &mut Output) -> anyhow::Result<Exit> {
        if output.is_json() {
            output.document(done)?;
        }
        for (topic, records) in &done.topics {
            let verb = if done.dry_run { "would go back" } else { "went back" };
            output.say(&format!("{} {verb} to {topic}", count(*records, "record")))?;
        }
        if done.id_conflicts > 0 {
            remark(&format!(
                "left out {} with reason id_conflict: the packet id belongs to other content, so they would conflict again. \
                 Push that content under another id, or insist with --reason id_conflict.",
                count(done.id_conflicts, "dead letter")
            ));
        } else if self.insists() && done.reasons.contains_key(DlqReason::IdConflict.as_str()) {
            remark(
                "packets with reason id_conflict conflict again for as long as the first use of their id is remembered",
            );
        }
        if done.without_origin > 0 {
            let letters = count(done.without_origin, "dead letter");
            remark(&format!("left out {letters} whose headers do not name a source partition"));
        }
        if done.repeats > 0 {
            output.say(&format!("{} of the same records left out", count(done.repeats, "repetition")))?;
        }
        if done.replayed == 0 && done.id_conflicts + done.without_origin == 0 {
            output.say("no dead letters match")?;
            return Ok(if self.places.is_empty() { Exit::Success } else { Exit::NotFound });
        }
        if done.dry_run {
            output.say("dry run: nothing was written; --yes does it")?;
        }
        Ok(if done.without_origin > 0 { Exit::Partial } else { Exit::Success })
    }
}

/// Writes records back, several on their way at a time, in order within a partition.
struct Writer {
    producer: FutureProducer,
    on_their_way: VecDeque<(Place, DeliveryFuture)>,
}

impl Writer {
    fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let mut config = connection.kafka();
        // The topic's own limit is what counts; a record that was in the dead-letter topic is within it.
        config.set("enable.idempotence", "true").set("acks", "all").set("message.max.bytes", MESSAGE_MAX_BYTES);
        let producer = config.create().context("Kafka client settings")?;
        Ok(Self { producer, on_their_way: VecDeque::new() })
    }

    async fn send(&mut self, letter: &DeadLetter, origin: &Origin) -> anyhow::Result<()> {
        if self.on_their_way.len() >= ON_THEIR_WAY {
            self.await_first().await?;
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&origin.topic)
            .partition(origin.partition)
            .headers(letter.original_headers());
        record.key = letter.key.as_deref();
        record.payload = letter.value.as_deref();
        let sent = self.producer.send_result(record).map_err(|(error, _)| error);
        let delivery = sent.with_context(|| format!("replaying {} to {}", letter.place, origin.topic))?;
        self.on_their_way.push_back((letter.place, delivery));
        Ok(())
    }

    async fn await_first(&mut self) -> anyhow::Result<()> {
        if let Some((place, delivery)) = self.on_their_way.pop_front() {
            let delivered = delivery.await.context("the producer is gone")?;
            delivered.map_err(|(error, _)| error).with_context(|| format!("replaying {place}"))?;
        }
        Ok(())
    }

    /// Until every record is acknowledged.
    async fn finish(mut self) -> anyhow::Result<()> {
        while !self.on_their_way.is_empty() {
            self.await_first().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::letter;
    use coderelay_schemas::dlq::{DLQ_PARTITION, DLQ_REASON, DLQ_TOPIC};

    fn replay(reasons: &[DlqReason], places: &[Place]) -> Replay {
        let filter = Filter { reason: reasons.to_vec(), ..Filter::default() };
        Replay { filter, places: places.to_vec(), rate: NonZeroU32::MIN, yes: false }
    }

    #[test]
    fn a_conflict_goes_back_only_when_asked_for() {
        let conflict = letter(&[(DLQ_REASON, "id_conflict"), (DLQ_TOPIC, "t"), (DLQ_PARTITION, "4")]);
        let mut done = Tally::default();
        assert_eq!(replay(&[], &[]).judge(&conflict, &mut done), None);
        assert_eq!((done.replayed, done.id_conflicts), (0, 1));
        let origin = replay(&[DlqReason::IdConflict], &[]).judge(&conflict, &mut done).unwrap();
        assert_eq!(origin, Origin { topic: "t".into(), partition: 4 });
    }

    #[test]
    fn only_the_places_named_go_back() {
        let expired = letter(&[(DLQ_REASON, "expired"), (DLQ_TOPIC, "t"), (DLQ_PARTITION, "4")]);
        let (here, there) = (expired.place, Place { partition: 0, offset: 0 });
        let mut done = Tally::default();
        assert!(replay(&[], &[there]).judge(&expired, &mut done).is_none());
        assert!(replay(&[], &[there, here]).judge(&expired, &mut done).is_some());
        assert_eq!(done.replayed, 1);
    }

    #[test]
    fn a_record_dead_lettered_again_goes_back_once() {
        let once = letter(&[(DLQ_REASON, "expired"), (DLQ_TOPIC, "t"), (DLQ_PARTITION, "4")]);
        let mut again = once.clone();
        again.place.offset += 1;
        let mut other = again.clone();
        other.value = None;
        let mut done = Tally::default();
        for letter in [&once, &again, &other] {
            replay(&[], &[]).judge(letter, &mut done);
        }
        assert_eq!((done.replayed, done.repeats), (2, 1));
    }
}
