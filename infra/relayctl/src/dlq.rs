//! `relayctl dlq`: look at dead letters and send them back.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, bail};
use coderelay_schemas::dlq::DlqReason;
use governor::{Quota, RateLimiter};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::connect::{Connection, REQUEST_TIMEOUT};
use crate::dead_letter::{DeadLetter, Listed, Origin, Place};
use crate::exit::{Exit, Refusal};
use crate::output::{Output, count};
use crate::position::{Moment, Position};
use crate::progress::{Progress, remark};
use crate::reader::{Offsets, Reader};
use crate::record::Content;

/// Dead letters: list, show, replay
#[derive(Debug, clap::Subcommand)]
pub(crate) enum DlqCommand {
    /// List dead letters
    List {
        #[command(flatten)]
        filter: Filter,
        /// End after this many
        #[arg(long, short = 'n', value_name = "COUNT")]
        limit: Option<u64>,
    },
    /// Show one dead letter in full: headers, packet, value
    Show {
        /// Where it is, as `dlq list` shows it: PARTITION@OFFSET
        place: Place,
    },
    /// Write dead letters to the topic they came from, with their key, value, headers and partition
    #[command(after_help = REPLAY_HELP)]
    Replay {
        #[command(flatten)]
        filter: Filter,
        /// Only this one: PARTITION@OFFSET (repeatable)
        #[arg(long = "record", value_name = "PLACE")]
        places: Vec<Place>,
        /// Records per second
        #[arg(long, default_value = "100", value_name = "PER_SECOND")]
        rate: NonZeroU32,
        /// Do it; without, the verb only says what it would do
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
        /// Say what would be done (the default)
        #[arg(long)]
        dry_run: bool,
    },
}

const REPLAY_HELP: &str = "Replaying twice is safe: a packet that was stored meanwhile is dropped as a duplicate, by its \
packet id, for as long as the deduplication window lasts. What is still wrong is dead-lettered again; only what was there \
at the start is replayed, so this ends.\n\nDead letters with reason id_conflict are left out unless --reason id_conflict \
asks for them: their id still belongs to other content, so they would conflict again.";

/// Which dead letters.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only this reason (repeatable)
    #[arg(long, value_parser = reason_parser(), value_name = "REASON")]
    reason: Vec<DlqReason>,
    /// Dead-lettered at or after this time, or this long ago (2026-01-31T12:00:00Z, 15m)
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Dead-lettered before this time, or this long ago
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Only of this repository (by record key)
    #[arg(long)]
    repo: Option<String>,
}

fn reason_parser() -> impl clap::builder::TypedValueParser<Value = DlqReason> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(DlqReason::ALL.map(DlqReason::as_str)).try_map(|text| text.parse::<DlqReason>())
}

impl Filter {
    fn matches(&self, letter: &DeadLetter) -> bool {
        let reason = self.reason.is_empty() || letter.reason().is_some_and(|reason| self.reason.contains(&reason));
        let time = letter.timestamp.unwrap_or_default();
        reason
            && self.since.is_none_or(|since| time >= since.millis())
            && self.until.is_none_or(|until| time < until.millis())
            && self.repo.as_ref().is_none_or(|repo| letter.key.as_deref() == Some(repo.as_bytes()))
    }
}

/// Runs the verb.
pub(crate) async fn run(command: DlqCommand, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    match command {
        DlqCommand::List { filter, limit } => tokio::task::block_in_place(|| list(&filter, limit, connection, output)),
        DlqCommand::Show { place } => tokio::task::block_in_place(|| show(place, connection, output)),
        DlqCommand::Replay { filter, places, rate, yes, dry_run: _ } => {
            replay(Replay { filter, places, rate, yes }, connection, output).await
        }
    }
}

/// Every dead letter there is now that matches, in the order of its partition.
fn scan(
    filter: &Filter,
    connection: &Connection,
    mut visit: impl FnMut(DeadLetter) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let reader = Reader::open(connection, &connection.topics().dlq)?;
    let until = reader.ends()?;
    let from = reader.resolve(filter.since.map_or(Position::Earliest, |since| Position::Time(since.0)))?;
    reader.read(&from, Some(&until), |message| {
        let letter = DeadLetter::read(message);
        if filter.matches(&letter) { visit(letter) } else { Ok(ControlFlow::Continue(())) }
    })
}

fn list(filter: &Filter, limit: Option<u64>, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut shown = 0;
    scan(filter, connection, |letter| {
        if limit.is_some_and(|limit| shown >= limit) {
            return Ok(ControlFlow::Break(()));
        }
        shown += 1;
        let reason = letter.reason().map_or("unknown", DlqReason::as_str);
        *reasons.entry(reason.to_owned()).or_default() += 1;
        output.stream(&Listed::from(&letter))?;
        Ok(ControlFlow::Continue(()))
    })?;
    let counts: Vec<_> = reasons.iter().map(|(reason, letters)| format!("{letters} {reason}")).collect();
    let colon = if shown == 0 { "" } else { ": " };
    output.say(&format!("{}{colon}{}", count(shown, "dead letter"), counts.join(", ")))?;
    Ok(Exit::Success)
}

/// One dead letter with all its headers.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: Listed,
    headers: BTreeMap<&'a str, String>,
    packet: Option<crate::record::PacketView>,
    /// The value where it is no packet: text, or base64.
    value: Option<Content>,
}

fn show(place: Place, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let reader = Reader::open(connection, &connection.topics().dlq)?;
    let found = find(&reader, place)?;
    let Some(letter) = found else {
        bail!(Refusal::NotFound(format!("no dead letter at {}@{}", place.partition, place.offset)));
    };
    let packet = letter.packet().map(|packet| crate::record::PacketView::new(&packet, true));
    let text = |value: &Option<Vec<u8>>| String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned();
    let shown = Shown {
        listed: Listed::from(&letter),
        headers: letter.headers.iter().map(|(key, value)| (key.as_str(), text(value))).collect(),
        value: if packet.is_none() { letter.value.clone().map(Content::of) } else { None },
        packet,
    };
    if output.is_json() {
        output.document(&shown)?;
        return Ok(Exit::Success);
    }
    for (key, value) in &shown.headers {
        output.say(&format!("{key:<16} {value}"))?;
    }
    if let Some(packet) = &shown.packet {
        output.say(&format!("{:<16} {}", "repo_id", packet.repo_id))?;
        output.say(&format!("{:<16} {}", "created_at", packet.created_at))?;
        for (key, value) in &packet.metadata {
            output.say(&format!("{:<16} {key}={value}", "metadata"))?;
        }
    }
    let content = shown.packet.as_ref().and_then(|packet| packet.content.as_ref()).or(shown.value.as_ref());
    output.say(&format!("\n{}", content.map(Content::text).unwrap_or_default()))?;
    Ok(Exit::Success)
}

fn find(reader: &Reader, place: Place) -> anyhow::Result<Option<DeadLetter>> {
    let (from, until) = (Offsets::from([(place.partition, place.offset)]), reader.ends()?);
    let mut found = None;
    if until.get(&place.partition).is_none_or(|&end| place.offset >= end) {
        return Ok(None);
    }
    reader.read(&from, Some(&until), |message| {
        let letter = DeadLetter::read(message);
        found = (letter.place == place).then_some(letter);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// What to replay, and how.
struct Replay {
    filter: Filter,
    places: Vec<Place>,
    rate: NonZeroU32,
    yes: bool,
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
    reasons: BTreeMap<String, u64>,
    topics: BTreeMap<String, u64>,
}

impl Replay {
    fn wants(&self, letter: &DeadLetter) -> bool {
        self.places.is_empty() || self.places.contains(&letter.place)
    }

    /// Whether a conflict would be replayed although it conflicts again.
    fn insists(&self) -> bool {
        self.filter.reason.contains(&DlqReason::IdConflict)
    }
}

async fn replay(replay: Replay, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let mut done = Tally { dry_run: !replay.yes, ..Tally::default() };
    let producer = if replay.yes { Some(producer(connection)?) } else { None };
    let pace = RateLimiter::direct(Quota::per_second(replay.rate));
    let mut progress = Progress::new("replaying", 0);

    let (letters, mut queue) = mpsc::channel(64);
    let scanning = tokio::task::spawn_blocking({
        let (filter, connection) = (replay.filter.clone(), connection.clone());
        move || {
            scan(&filter, &connection, |letter| {
                let gone = letters.blocking_send(letter).is_err();
                Ok(if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
        }
    });
    while let Some(letter) = queue.recv().await {
        if !replay.wants(&letter) {
            continue;
        }
        if letter.reason() == Some(DlqReason::IdConflict) && !replay.insists() {
            done.id_conflicts += 1;
            continue;
        }
        let Some(origin) = letter.origin() else {
            done.without_origin += 1;
            continue;
        };
        if let Some(producer) = &producer {
            pace.until_ready().await;
            send(producer, &letter, &origin).await?;
        }
        done.replayed += 1;
        progress.advance(1);
        *done.reasons.entry(letter.reason().map_or("unknown", DlqReason::as_str).to_owned()).or_default() += 1;
        *done.topics.entry(origin.topic).or_default() += 1;
    }
    scanning.await??;
    drop(progress);
    if let Some(producer) = producer {
        tokio::task::block_in_place(|| producer.flush(REQUEST_TIMEOUT)).context("flushing replayed records")?;
    }
    report(&done, &replay, output)
}

fn report(done: &Tally, replay: &Replay, output: &mut Output) -> anyhow::Result<Exit> {
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
    } else if replay.insists() && done.reasons.contains_key(DlqReason::IdConflict.as_str()) {
        remark("packets with reason id_conflict conflict again for as long as the first use of their id is remembered");
    }
    if done.without_origin > 0 {
        let letters = count(done.without_origin, "dead letter");
        remark(&format!("left out {letters} whose headers do not name a source partition"));
    }
    if done.replayed == 0 && done.id_conflicts + done.without_origin == 0 {
        output.say("no dead letters match")?;
        return Ok(if replay.places.is_empty() { Exit::Success } else { Exit::NotFound });
    }
    if done.dry_run {
        output.say("dry run: nothing was written; --yes does it")?;
    }
    Ok(if done.without_origin > 0 { Exit::Partial } else { Exit::Success })
}

fn producer(connection: &Connection) -> anyhow::Result<FutureProducer> {
    let mut config = connection.kafka();
    // A dead letter carries more headers than its original, never fewer: the topic's own limit is what counts.
    config.set("enable.idempotence", "true").set("acks", "all").set("message.max.bytes", (8 << 20).to_string());
    config.create().context("Kafka client settings")
}

async fn send(producer: &FutureProducer, letter: &DeadLetter, origin: &Origin) -> anyhow::Result<()> {
    let mut record =
        FutureRecord::<[u8], [u8]>::to(&origin.topic).partition(origin.partition).headers(letter.original_headers());
    record.key = letter.key.as_deref();
    record.payload = letter.value.as_deref();
    producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error).with_context(|| {
        let Place { partition, offset } = letter.place;
        format!("replaying {partition}@{offset} to {} partition {}", origin.topic, origin.partition)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::letter;
    use std::time::SystemTime;

    #[test]
    fn a_filter_looks_at_reason_time_and_repository() {
        let expired = letter(&[("dlq.reason", "expired")]);
        assert!(Filter::default().matches(&expired));
        assert!(Filter { reason: vec![DlqReason::Expired], ..Filter::default() }.matches(&expired));
        assert!(!Filter { reason: vec![DlqReason::GzipBomb], ..Filter::default() }.matches(&expired));
        assert!(!Filter { reason: vec![DlqReason::Expired], ..Filter::default() }.matches(&letter(&[])));

        let epoch = Some(Moment(SystemTime::UNIX_EPOCH));
        assert!(Filter { since: epoch, ..Filter::default() }.matches(&expired), "since is inclusive");
        assert!(!Filter { until: epoch, ..Filter::default() }.matches(&expired), "until is not");
        assert!(Filter { repo: Some("team/relay".into()), ..Filter::default() }.matches(&expired));
        assert!(!Filter { repo: Some("other".into()), ..Filter::default() }.matches(&expired));
    }
}
