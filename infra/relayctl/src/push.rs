//! `relayctl push`: files, folders or standard input become packets.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::validate::PacketLimits;
use serde::Serialize;

use crate::connect::Connection;
use crate::delivery::{Acknowledged, Delivery, deliver};
use crate::exit::Exit;
use crate::output::{Output, size};
use crate::packer::Packer;
use crate::progress::remark;
use crate::publisher::Ack;
use crate::source::{Source, expand, repository};
use crate::window::Receipt;

/// Push files as packets
#[derive(Debug, clap::Args)]
pub(crate) struct PushArgs {
    /// Files, folders (in a git checkout: the tracked files), or - for standard input
    #[arg(default_value = ".", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Repository id [default: owner/name of the git remote, else the name of the top folder]
    #[arg(long)]
    repo: Option<String>,
    /// Metadata of every packet, beside `path` (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<Entry>,
    /// What an acknowledgement promises [default: the deployment's]
    #[arg(long)]
    ack: Option<Ack>,
    /// Give up after this long without any acknowledgement, of all endpoints together
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    patience: Duration,
}

/// One metadata entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry(String, String);

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("expected key=value".to_owned()),
        }
    }
}

/// What became of one file; also one line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Fate<'a> {
    Committed { path: &'a str, packet_id: String, topic: &'a str, partition: i32, offset: i64, attempts: u32 },
    Rejected { path: &'a str, packet_id: Option<String>, reason: &'a str, message: &'a str },
    Skipped { path: &'a str, reason: String },
}

/// The numbers at the end; also the last line of JSON.
#[derive(Debug, Serialize)]
struct Summary {
    repo_id: String,
    files: usize,
    committed: usize,
    rejected: usize,
    skipped: usize,
    /// Packets without an outcome, because ingest was given up.
    unsettled: usize,
    /// Packets that were sent more than once.
    retried: usize,
    /// Streams that broke and were taken up again, there or at another endpoint.
    reconnections: usize,
    endpoints: Vec<Acknowledged>,
    raw_bytes: u64,
    packet_bytes: u64,
    seconds: f64,
}

/// Runs the verb. [`Exit::Partial`] where some files were rejected or skipped, [`Exit::Failure`] where all were, or where
/// ingest stopped answering.
pub(crate) async fn run(args: PushArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let sources: Arc<[Source]> = expand(&args.paths)?.into();
    let first = args.paths.first().map_or(Path::new("."), PathBuf::as_path);
    let packer = Packer {
        repo_id: args.repo.map_or_else(|| repository(first), Ok)?,
        metadata: args.metadata.into_iter().map(|Entry(key, value)| (key, value)).collect(),
        created_at: SystemTime::now(),
        limits: PacketLimits::default(),
        strict: false,
    };
    let repo_id = packer.repo_id.clone();
    let delivery =
        deliver(Arc::new(packer), Arc::clone(&sources), connection.channels()?, args.ack, args.patience, "pushing")
            .await?;

    for receipt in &delivery.receipts {
        show(&fate(&sources, receipt), output)?;
    }
    for (tag, skip) in delivery.skipped() {
        show(&Fate::Skipped { path: &sources[tag].label, reason: skip.to_string() }, output)?;
    }
    let summary = Summary::of(repo_id, sources.len(), &delivery);
    summarise(&summary, output)?;
    if let Some(gave_up) = delivery.gave_up {
        remark(&gave_up.to_string());
        return Ok(Exit::Failure);
    }
    Ok(match (summary.committed, summary.rejected + summary.skipped) {
        (_, 0) => Exit::Success,
        (0, _) => Exit::Failure,
        _ => Exit::Partial,
    })
}

impl Summary {
    fn of(repo_id: String, files: usize, delivery: &Delivery) -> Self {
        let committed = delivery.receipts.iter().filter(|receipt| receipt.outcome.is_ok()).count();
        let (rejected, skipped) = (delivery.receipts.len() - committed, delivery.skipped().count());
        Self {
            repo_id,
            files,
            committed,
            rejected,
            skipped,
            unsettled: files - committed - rejected - skipped,
            retried: delivery.receipts.iter().filter(|receipt| receipt.attempts > 1).count(),
            reconnections: delivery.reconnections,
            endpoints: delivery.endpoints.clone(),
            raw_bytes: delivery.packed().map(|(_, manifest)| manifest.raw_bytes).sum(),
            packet_bytes: delivery.packed().map(|(_, manifest)| manifest.packet_bytes).sum(),
            seconds: delivery.took.as_secs_f64(),
        }
    }
}

fn fate<'a>(sources: &'a [Source], receipt: &'a Receipt) -> Fate<'a> {
    let path = sources.get(receipt.tag).map_or("", |source| &source.label);
    let packet_id = receipt.packet_id.as_ref().map(PacketId::to_string);
    match &receipt.outcome {
        Ok(committed) => Fate::Committed {
            path,
            packet_id: packet_id.unwrap_or_default(),
            topic: &committed.topic,
            partition: committed.partition,
            offset: committed.offset,
            attempts: receipt.attempts,
        },
        Err(rejection) => Fate::Rejected { path, packet_id, reason: &rejection.reason, message: &rejection.message },
    }
}

/// People see the exceptions, programs every packet.
fn show(fate: &Fate<'_>, output: &mut Output) -> std::io::Result<()> {
    if output.is_json() {
        return output.json_line(fate);
    }
    match fate {
        Fate::Committed { .. } => Ok(()),
        Fate::Rejected { path, reason, message, .. } => output.say(&format!("rejected  {path}: {reason}: {message}")),
        Fate::Skipped { path, reason } => output.say(&format!("skipped   {path}: {reason}")),
    }
}

fn summarise(summary: &Summary, output: &mut Output) -> std::io::Result<()> {
    if output.is_json() {
        return output.json_line(&HashMap::from([("summary", summary)]));
    }
    let Summary { repo_id, files, committed, raw_bytes, packet_bytes, seconds, .. } = summary;
    let sizes = format!("{} raw, {} as packets", size(*raw_bytes), size(*packet_bytes));
    let mut parts = vec![format!("{repo_id}: {committed} of {files} files committed in {seconds:.1} s ({sizes})")];
    let notes = [
        (summary.rejected, "rejected"),
        (summary.skipped, "skipped"),
        (summary.unsettled, "without an outcome"),
        (summary.retried, "sent more than once"),
        (summary.reconnections, "reconnections"),
    ];
    parts.extend(notes.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    if let [_, _, ..] = summary.endpoints[..] {
        let at = |Acknowledged { endpoint, committed }: &Acknowledged| format!("{committed} by {endpoint}");
        parts.extend(summary.endpoints.iter().map(at));
    }
    output.say(&parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_needs_a_key() {
        assert_eq!("branch=a=b".parse::<Entry>().unwrap(), Entry("branch".into(), "a=b".into()));
        assert!("=x".parse::<Entry>().is_err());
        assert!("x".parse::<Entry>().is_err());
    }

    #[test]
    fn a_fate_is_one_flat_json_object() {
        let fate = Fate::Skipped { path: "a/b", reason: "too large".into() };
        let json = serde_json::to_value(&fate).unwrap();
        assert_eq!(json, serde_json::json!({ "outcome": "skipped", "path": "a/b", "reason": "too large" }));
    }
}
