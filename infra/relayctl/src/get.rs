//! `relayctl get`: what is stored, out of CQL.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use anyhow::{Context as _, bail};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::validate::PacketLimits;
use futures::TryStreamExt as _;
use serde::Serialize;

use crate::connect::Connection;
use crate::exit::{Exit, Refusal};
use crate::output::{Output, Row, count, size};
use crate::packer::{PATH, gunzip};
use crate::position::rfc3339;
use crate::record::Content;
use crate::store::{Day, Store, StoredPacket};

/// Get stored packets: a repository's day, or one packet's content
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// Repository id
    repo: String,
    /// UTC day the packets were created on (2026-01-31, today, yesterday) [default: today]
    #[arg(long)]
    day: Option<Day>,
    /// Only this packet, 32 hexadecimal digits; its unpacked content goes to standard output
    #[arg(long, value_name = "HEX")]
    packet_id: Option<PacketId>,
    /// Content as it is stored: gzip
    #[arg(long)]
    raw: bool,
    /// Write contents to files in this folder, under their `path`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A stored packet; one line of JSON.
#[derive(Debug, Serialize)]
struct View {
    repo_id: String,
    day: String,
    packet_id: String,
    created_at: String,
    ingested_at: String,
    region: Option<String>,
    metadata: BTreeMap<String, String>,
    content_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(flatten)]
    content: Option<Content>,
}

impl Row for View {
    const HEADER: &'static [&'static str] = &["packet id", "created at", "size", "path"];

    fn cells(&self) -> Vec<String> {
        let path = self.file.as_ref().or_else(|| self.metadata.get(PATH)).cloned().unwrap_or_default();
        vec![self.packet_id.clone(), self.created_at.clone(), format!("{:>10}", size(self.content_bytes as u64)), path]
    }
}

/// Runs the verb. [`Exit::NotFound`] where nothing is stored under the names given.
pub(crate) async fn run(args: GetArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let day = args.day.unwrap_or_else(|| Day::of(SystemTime::now()));
    let store = Store::connect(connection).await?;
    if let Some(id) = args.packet_id {
        let Some(stored) = store.packet(&args.repo, day, id).await? else {
            bail!(Refusal::NotFound(format!("no packet {id} of {} on {day}", args.repo)));
        };
        if args.out.is_none() && !output.is_json() {
            output.bytes(&content(&stored, args.raw)?)?;
        } else {
            output.stream(&view(&args, day, stored)?)?;
        }
        return Ok(Exit::Success);
    }

    let mut rows = store.day(&args.repo, day).await?;
    let (mut packets, mut bytes) = (0_u64, 0_u64);
    while let Some(stored) = rows.try_next().await? {
        packets += 1;
        bytes += stored.content.len() as u64;
        output.stream(&view(&args, day, stored)?)?;
    }
    if packets == 0 {
        bail!(Refusal::NotFound(format!("no packets of {} on {day}", args.repo)));
    }
    output.say(&format!("{}, {}", count(packets, "packet"), size(bytes)))?;
    Ok(Exit::Success)
}

/// The row for display, and its content on disk where a folder was given.
fn view(args: &GetArgs, day: Day, stored: StoredPacket) -> anyhow::Result<View> {
    let packet_id = hex::encode(&stored.packet_id);
    let mut file = None;
    if let Some(folder) = &args.out {
        let name = stored.metadata.as_ref().and_then(|metadata| metadata.get(PATH));
        let path = folder.join(safe_name(name.map_or("", String::as_str), &packet_id));
        write(&path, &content(&stored, args.raw)?).with_context(|| path.display().to_string())?;
        file = Some(path.display().to_string());
    }
    let content = match (args.out.is_none(), args.raw) {
        (false, _) => None,
        (true, true) => Some(Content::of(stored.content.clone())),
        (true, false) => Some(Content::unpack(&stored.content)),
    };
    Ok(View {
        repo_id: stored.repo_id,
        day: day.to_string(),
        packet_id,
        created_at: rfc3339(stored.created_at.map(|at| at.0)),
        ingested_at: rfc3339(stored.ingested_at.map(|at| at.0)),
        region: stored.region,
        metadata: stored.metadata.unwrap_or_default().into_iter().collect(),
        content_bytes: stored.content.len(),
        file,
        content,
    })
}

fn content(stored: &StoredPacket, raw: bool) -> anyhow::Result<Vec<u8>> {
    if raw {
        return Ok(stored.content.clone());
    }
    let limit = PacketLimits::default().expanded_max.as_u64();
    gunzip(&stored.content, limit).with_context(|| format!("unpacking {}", hex::encode(&stored.packet_id)))
}

/// A packet's path as a path below the folder. Paths come from producers: what would leave the folder is named after the
/// packet instead.
fn safe_name(path: &str, packet_id: &str) -> PathBuf {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if inside && !path.is_empty() { PathBuf::from(path) } else { PathBuf::from(packet_id) }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_packet_writes_outside_the_folder() {
        assert_eq!(safe_name("src/main.rs", "id"), Path::new("src/main.rs"));
        for hostile in ["../x", "/etc/passwd", "a/../../x", "", "./x"] {
            assert_eq!(safe_name(hostile, "id"), Path::new("id"), "{hostile}");
        }
    }
}
