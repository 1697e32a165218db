//! `relayctl dlq`: look at dead letters and send them back.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::ControlFlow;

use anyhow::bail;
use coderelay_schemas::dlq::DlqReason;
use serde::Serialize;

use crate::connect::Connection;
use crate::dead_letter::{DeadLetter, Listed, Place};
use crate::exit::{Exit, Refusal};
use crate::output::{Output, count};
use crate::position::{Moment, Position};
use crate::reader::{Offsets, Reader};
use crate::record::{Content, PacketView};
use crate::replay::Replay;

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
at the start is replayed, and each record once, so this ends. Of what expires again, being replayed faster than it is \
processed, --since the last replay sends the rest.\n\nDead letters with reason id_conflict are left out unless --reason id_conflict \
asks for them: their id still belongs to other content, so they would conflict again.";

/// Which dead letters.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only this reason (repeatable)
    #[arg(long, value_parser = reason_parser(), value_name = "REASON")]
    pub(crate) reason: Vec<DlqReason>,
    /// Written at or after this time, or this long ago (2026-01-31T12:00:00Z, 15m): a dead letter keeps its record's timestamp
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Written before this time, or this long ago
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
    /// Only of this repository (by record key)
    #[arg(long)]
    pub(crate) repo: Option<String>,
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
            Replay { filter, places, rate, yes }.run(connection, output).await
        }
    }
}

/// Every dead letter there is now that matches, in the order of its partition.
pub(crate) fn scan(
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
    packet: Option<PacketView>,
    /// The value where it is no packet: text, or base64.
    value: Option<Content>,
}

fn show(place: Place, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let reader = Reader::open(connection, &connection.topics().dlq)?;
    let found = find(&reader, place)?;
    let Some(letter) = found else {
        bail!(Refusal::NotFound(format!("no dead letter at {place}")));
    };
    let packet = letter.packet().map(|packet| PacketView::new(&packet, true));
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
