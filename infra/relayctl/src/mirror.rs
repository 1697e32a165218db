//! `relayctl mirror`: how far the mirror between two regions is, and whether they hold the same.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use coderelay_schemas::dlq::DlqReason;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use rdkafka::Message as _;
use serde::Serialize;

use crate::comparison::{Comparison, DeadLettered, Difference, Published, Window};
use crate::connect::Connection;
use crate::dead_letter::DeadLetter;
use crate::exit::{Exit, Refusal};
use crate::mirror_status::{Direction, MirrorStatus};
use crate::mirror_watch::{self, WatchArgs};
use crate::output::{Output, Row, count};
use crate::position::{Moment, Position, rfc3339};
use crate::progress::Progress;
use crate::reader::Reader;
use crate::receipts;
use crate::region::Region;
use crate::restore::{self, RestoreArgs};
use crate::store::{Day, Store};

/// Copies of one packet, sent to both regions, may lie as far apart as duplicates are recognised: the default `dedup.window`.
const APART: Duration = Duration::from_secs(3600);

/// Repositories' days that are read from the stores at once.
const DAYS_AT_ONCE: usize = 8;

/// Two regions: how far their mirror is, and whether they hold the same
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MirrorCommand {
    /// Show tasks, last heartbeat, lag and supervisor's restarts of each direction; exit code 1 where a task does not run, no heartbeat
    /// arrives or a region does not answer, and then what the other tells
    Status(RegionArgs),
    /// Look again and again, and serve what `status` shows as metrics, until interrupted
    Watch(WatchArgs),
    /// Compare what two regions have published and stored; exit code 1 where it differs
    Verify(VerifyArgs),
    /// Give a region that has lost its disks back what the other has mirrored of it, and set `MirrorMaker`'s offsets accordingly
    ///
    /// Before: stop `MirrorMaker`, start the region's brokers and store empty, create its topics (`relayctl topics apply`) and its table.
    /// Afterwards: start its ingest, its processor and `MirrorMaker`. May be repeated when interrupted.
    Restore(RestoreArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegionArgs {
    /// A region (twice): NAME, with its addresses in `KAFKA_BOOTSTRAP_<NAME>` and `CQL_CONTACT_<NAME>` as `infra/dev up --regions 2`
    /// writes them, or NAME,kafka=HOST:PORT,cql=HOST:PORT with keyspace=… and topic-suffix=… where they differ,
    /// and restarts=FILE or `MIRROR_RESTARTS_<NAME>`, the file in which the supervisor of the `MirrorMaker` that writes to it counts restarts
    #[arg(long = "region", value_name = "REGION", default_values = ["us-east", "eu-west"])]
    regions: Vec<Region>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    regions: RegionArgs,
    /// Packets that were ingested at or after this time, or as long ago
    #[arg(long, default_value = "1h", value_name = "TIME")]
    since: Moment,
    /// Packets that were ingested before this time, or as long ago: younger ones may not have been mirrored yet
    #[arg(long, default_value = "1m", value_name = "TIME")]
    until: Moment,
    /// What producers were told: the output of `relayctl push --output json` (repeatable); what was acknowledged since --since and is in
    /// neither region is a difference too, and so is what was dead-lettered
    #[arg(long, value_name = "FILE")]
    receipts: Vec<PathBuf>,
    /// Differences to show; all are counted
    #[arg(long, short = 'n', default_value_t = 20, value_name = "COUNT")]
    limit: usize,
}

/// What was compared and found.
#[derive(Debug, Serialize)]
struct Report<'a> {
    regions: [&'a str; 2],
    since: String,
    until: String,
    published: [u64; 2],
    stored: [u64; 2],
    conflicts: u64,
    /// Packets in the receipts, where there are any.
    acknowledged: Option<usize>,
    /// Those of them that are in neither region, dead letters included.
    lost: u64,
    differences: usize,
    shown: &'a [Difference],
}

impl Row for Difference {
    const HEADER: &'static [&'static str] = &["ingested", "region", "place", "what", "repository", "packet id"];

    fn cells(&self) -> Vec<String> {
        let Self { ingested_at, region, place, what, repo_id, packet_id } = self;
        let place = place.to_string();
        vec![ingested_at.clone(), region.clone(), place, what.clone(), repo_id.clone(), packet_id.clone()]
    }
}

/// Runs the verb.
pub(crate) async fn run(command: MirrorCommand, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    match command {
        MirrorCommand::Status(args) => status(&args, connection, output),
        MirrorCommand::Watch(args) => mirror_watch::run(args, connection, output).await,
        MirrorCommand::Verify(args) => verify(args, connection, output).await,
        MirrorCommand::Restore(args) => restore::run(&args, connection, output).await,
    }
}

impl RegionArgs {
    /// The two regions.
    fn pair(&self) -> Result<[&Region; 2], Refusal> {
        match self.regions.as_slice() {
            [one, other] if one.name != other.name => Ok([one, other]),
            _ => Err(Refusal::Usage("two regions of different names are needed".into())),
        }
    }

    /// From either to the other.
    pub(crate) fn directions(&self, base: &Connection) -> anyhow::Result<[Direction; 2]> {
        let [one, other] = self.pair()?;
        Ok([Direction::new(one, other, base)?, Direction::new(other, one, base)?])
    }
}

fn status(args: &RegionArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let directions = args.directions(connection)?;
    let directions: Vec<_> = tokio::task::block_in_place(|| directions.iter().map(Direction::status).collect());
    output.list(&directions)?;
    Ok(if directions.iter().all(MirrorStatus::is_well) { Exit::Success } else { Exit::Failure })
}

async fn verify(args: VerifyArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let VerifyArgs { regions, since, until, receipts, limit } = args;
    let window = Window { since: since.millis(), until: until.millis() };
    if window.since >= window.until {
        return Err(Refusal::Usage("--since has to be before --until".into()).into());
    }
    let [one, other] = regions.pair()?;
    let connections = [one.connection(connection)?, other.connection(connection)?];
    let (one, other) = (one.name.as_str(), other.name.as_str());

    let acknowledged = if receipts.is_empty() { None } else { Some(receipts::acknowledged(&receipts)?) };
    let mut comparison = Comparison::of([one, other], window);
    let earliest = since.0.checked_sub(APART).unwrap_or(SystemTime::UNIX_EPOCH);
    let published = tokio::task::block_in_place(|| {
        anyhow::Ok([published(&connections[0], earliest)?, published(&connections[1], earliest)?])
    })?;
    comparison.topics(&published);
    if let Some(acknowledged) = &acknowledged {
        let dead_lettered = tokio::task::block_in_place(|| {
            anyhow::Ok([dead_lettered(&connections[0], earliest)?, dead_lettered(&connections[1], earliest)?])
        })?;
        comparison.receipts(acknowledged, &published, &dead_lettered);
    }

    let days: BTreeSet<(String, Day)> = published.iter().flat_map(|published| published.days(window)).collect();
    let stores = [Store::connect(&connections[0]).await?, Store::connect(&connections[1]).await?];
    let mut progress = Progress::new("comparing", days.len() as u64);
    let mut rows = stream::iter(days)
        .map(|(repo, day)| {
            let stores = &stores;
            async move {
                let read = async |store: &Store| store.day(&repo, day).await?.try_collect::<Vec<_>>().await;
                anyhow::Ok([read(&stores[0]).await?, read(&stores[1]).await?])
            }
        })
        .buffer_unordered(DAYS_AT_ONCE);
    while let Some(days) = rows.try_next().await? {
        comparison.stores(&days);
        progress.advance(1);
    }
    drop(progress);

    report(&comparison, [one, other], window, acknowledged.as_ref().map(BTreeSet::len), limit, output)?;
    Ok(if comparison.differences.is_empty() { Exit::Success } else { Exit::Failure })
}

fn report(
    found: &Comparison,
    regions: [&str; 2],
    window: Window,
    acknowledged: Option<usize>,
    limit: usize,
    output: &mut Output,
) -> anyhow::Result<()> {
    let shown = &found.differences[..limit.min(found.differences.len())];
    if output.is_json() {
        let (since, until) = (rfc3339(Some(window.since)), rfc3339(Some(window.until)));
        let Comparison { published, stored, conflicts, lost, ref differences, .. } = *found;
        let differences = differences.len();
        output.document(&Report {
            regions,
            since,
            until,
            published,
            stored,
            conflicts,
            acknowledged,
            lost,
            differences,
            shown,
        })?;
        return Ok(());
    }
    output.list(shown)?;
    for (region, (published, stored)) in regions.iter().zip(found.published.iter().zip(&found.stored)) {
        output.say(&format!("{region}: {published} published, {stored} stored"))?;
    }
    if found.conflicts > 0 {
        let ids = count(found.conflicts, "id");
        output
            .say(&format!("{ids} used for different content: each region published one and dead-lettered the other"))?;
    }
    if let Some(acknowledged) = acknowledged {
        output.say(&format!("{} of {acknowledged} acknowledged packets are in neither region", found.lost))?;
    }
    output.say(&count(found.differences.len() as u64, "difference"))?;
    Ok(())
}

/// What a region has published since `from`; blocks.
fn published(connection: &Connection, from: SystemTime) -> anyhow::Result<Published> {
    let reader = Reader::open(connection, &connection.topics().deduped)?;
    let (from, ends) = (reader.resolve(Position::Time(from))?, reader.ends()?);
    let length = ends.iter().map(|(partition, end)| end - from.get(partition).copied().unwrap_or(*end)).sum::<i64>();
    let mut progress = Progress::new("reading", length.max(0) as u64);
    let mut published = Published::default();
    reader.read(&from, Some(&ends), |message| {
        let timestamp = message.timestamp().to_millis().unwrap_or_default();
        let packet = CodePacket::decode(message.payload().unwrap_or_default());
        let packet =
            packet.with_context(|| format!("{}-{}@{}", message.topic(), message.partition(), message.offset()))?;
        let id = id(&packet);
        published.add(packet, id, timestamp);
        progress.advance(1);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(published)
}

/// What a region has dead-lettered since `from`, as far as it is a packet; blocks.
fn dead_lettered(connection: &Connection, from: SystemTime) -> anyhow::Result<DeadLettered> {
    let reader = Reader::open(connection, &connection.topics().dlq)?;
    let (from, ends) = (reader.resolve(Position::Time(from))?, reader.ends()?);
    let mut dead_lettered = DeadLettered::new();
    reader.read(&from, Some(&ends), |message| {
        let letter = DeadLetter::read(message);
        if let Some(packet) = letter.packet() {
            let reason = letter.reason().map_or("no known reason", DlqReason::as_str);
            let id = id(&packet);
            dead_lettered.insert((packet.repo_id, id), reason.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(dead_lettered)
}

/// A packet's id. What others wrote without one has the one that the processor derived.
fn id(packet: &CodePacket) -> PacketId {
    PacketId::from_slice(&packet.packet_id)
        .unwrap_or_else(|_| PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata))
}
