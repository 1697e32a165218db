//! `relayctl mirror restore`: a region that has lost its disks gets back what the other has mirrored of it.
//!
//! Its packets' topic is copied back, record for record in the same partitions; its processor then makes store, duplicate-free topic and ledger
//! out of it. Afterwards `MirrorMaker` is told that all of this is in the other region already: its offsets are of the topic that was lost.
//! Left as they are, it would skip what the region takes until that many records are there again, or, where it finds that there are
//! fewer, mirror everything once more, most of which nobody remembers as a duplicate.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use coderelay_mirrormaker::topic;
use coderelay_runtime::kafka;
use coderelay_schemas::topics::TopicSpec;
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::BaseRecord;
use serde::Serialize;

use crate::cluster::{Cluster, Creation};
use crate::connect::Connection;
use crate::exit::{Exit, Refusal};
use crate::outbox::Outbox;
use crate::output::{Output, Row, count};
use crate::position::Position;
use crate::progress::Progress;
use crate::reader::{Offsets, Reader};
use crate::region::Region;
use crate::source_offsets::{SourceOffsets, await_stopped};

/// How long a worker of `MirrorMaker` that was just killed holds its place at most.
const WORKER_SESSION: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The region that lives: NAME, with its brokers in `KAFKA_BOOTSTRAP_<NAME>`, or NAME,kafka=HOST:PORT
    #[arg(long, value_name = "REGION")]
    from: Region,
    /// The region that has lost its disks, its topics created again and empty, its ingest not started
    #[arg(long, value_name = "REGION")]
    to: Region,
    /// Count only; nothing is written
    #[arg(long)]
    dry_run: bool,
}

/// What became of one partition.
#[derive(Debug, Default, Serialize)]
struct Restored {
    partition: i32,
    /// Records that were copied, or in a dry run: would be.
    copied: i64,
    /// Records that an earlier, interrupted run had copied.
    already_there: i64,
    /// The offset up to which the lost topic had been mirrored; none where nothing had. What it acknowledged from there on is lost.
    mirrored_until: Option<i64>,
}

impl Row for Restored {
    const HEADER: &'static [&'static str] = &["partition", "copied", "already there", "mirrored until offset"];

    fn cells(&self) -> Vec<String> {
        let until = self.mirrored_until.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        vec![self.partition.to_string(), self.copied.to_string(), self.already_there.to_string(), until]
    }
}

/// What was done; also its JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    dry_run: bool,
    from: &'a str,
    to: &'a str,
    records: i64,
    /// Keys of `MirrorMaker`'s offset topic that were written.
    offsets: usize,
    partitions: &'a [Restored],
}

/// Runs the verb. May be run again after an interruption: it goes on where it was.
pub(crate) async fn run(args: &RestoreArgs, base: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    if args.from.name == args.to.name {
        return Err(Refusal::Usage("--from and --to have to be two regions".into()).into());
    }
    let (survivor, lost) = (args.from.kafka(base)?, args.to.kafka(base)?);
    let exit = tokio::task::block_in_place(|| restore(args, &survivor, &lost, output))?;
    if !args.dry_run {
        create_mirror(&args.from.name, &lost).await?;
    }
    Ok(exit)
}

/// Creates the topic in which the region will get the other's packets, before its processor starts. Were it `MirrorMaker` that creates it, the
/// members of the processor's group would learn of it one after the other, and for that moment some would have a partition of it
/// without the same partition of the region's own topic: they would not know that copies of its packets come from two regions.
async fn create_mirror(from: &str, lost: &Connection) -> anyhow::Result<()> {
    let cluster = Cluster::connect(lost)?;
    let topics = cluster.topics().await?;
    let packets = lost.topics().packets;
    let name = topic::mirrored(from, &packets);
    let own = topics.get(&packets).with_context(|| format!("there is no {packets}"))?;
    if topics.contains_key(&name) {
        return Ok(());
    }
    let spec = lost.topics().specs().into_iter().find(|spec| spec.name == packets);
    // What differs in the source's own settings, MirrorMaker brings over.
    let settings = spec.iter().flat_map(TopicSpec::config).collect();
    let creation = Creation { name: &name, partitions: own.partitions, settings };
    cluster.create(&[creation], own.replication_factor).await
}

fn restore(args: &RestoreArgs, survivor: &Connection, lost: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let (from, to) = (&args.from.name, &args.to.name);
    let packets = lost.topics().packets;
    let mirror = Reader::open(survivor, &topic::mirrored(to, &survivor.topics().packets))?;
    let empty = Reader::open(lost, &packets).context("`relayctl topics apply` creates it")?;
    await_stopped(survivor, to, WORKER_SESSION)?;
    let offsets = SourceOffsets::read(survivor, to).context("where MirrorMaker keeps how far it is")?;

    let copy = Copy::plan(&mirror, &empty)?;
    let mut partitions = if args.dry_run { copy.planned() } else { copy.carry_out(lost, &packets)? };
    for partition in &mut partitions {
        partition.mirrored_until = offsets.mirrored(&packets).get(&partition.partition).copied();
    }
    let next: Offsets = partitions.iter().map(|done| (done.partition, done.copied + done.already_there)).collect();
    let mut written = 0;
    if !args.dry_run {
        ensure!(
            empty.ends()? == next,
            "somebody else writes to {packets} of {to}: stop its ingest, and see `relayctl mirror restore --help`"
        );
        await_stopped(survivor, to, Duration::ZERO)?;
        written = offsets.reset(survivor, &packets, &next)?;
    }
    report(
        &Report {
            dry_run: args.dry_run,
            from,
            to,
            records: partitions.iter().map(|done| done.copied).sum(),
            offsets: written,
            partitions: &partitions,
        },
        output,
    )?;
    Ok(Exit::Success)
}

fn report(report: &Report<'_>, output: &mut Output) -> anyhow::Result<()> {
    if output.is_json() {
        output.document(report)?;
        return Ok(());
    }
    output.list(report.partitions)?;
    let Report { from, to, records, offsets, .. } = report;
    let records = count(records.unsigned_abs(), "record");
    if report.dry_run {
        output.say(&format!("dry run: {records} would go from {from} to {to}"))?;
        return Ok(());
    }
    output.say(&format!(
        "{records} went from {from} to {to}, and {} of MirrorMaker were set",
        count(*offsets as u64, "offset")
    ))?;
    output.say(&format!("what {to} had acknowledged at or after the last column's offsets is lost"))?;
    output.say(&format!("next: start ingest and processor of {to} and MirrorMaker, then `relayctl mirror verify`"))?;
    Ok(())
}

/// A copy of a topic into one that is empty, or has the beginning of it.
struct Copy<'a> {
    mirror: &'a Reader,
    lows: Offsets,
    ends: Offsets,
    /// What the target has, by partition.
    there: BTreeMap<i32, Beginning>,
}

/// The first records of a partition.
#[derive(Default)]
struct Beginning {
    records: i64,
    digest: blake3::Hasher,
}

impl<'a> Copy<'a> {
    fn plan(mirror: &'a Reader, target: &Reader) -> anyhow::Result<Self> {
        let (lows, ends) = (mirror.resolve(Position::Earliest)?, mirror.ends()?);
        let mut there: BTreeMap<i32, Beginning> =
            target.ends()?.into_keys().map(|partition| (partition, Beginning::default())).collect();
        ensure!(
            there.keys().eq(ends.keys()),
            "{} has {} partitions and {} has {}: they must be the same (`relayctl topics apply --partitions`)",
            mirror.topic(),
            ends.len(),
            target.topic(),
            there.len()
        );
        target.read_all(|record| there.entry(record.partition()).or_default().add(record))?;
        Ok(Self { mirror, lows, ends, there })
    }

    fn planned(self) -> Vec<Restored> {
        let planned = |(partition, there): (i32, Beginning)| {
            let records = self.ends[&partition] - self.lows[&partition];
            Restored { partition, copied: records - there.records, already_there: there.records, mirrored_until: None }
        };
        self.there.into_iter().map(planned).collect()
    }

    fn carry_out(self, lost: &Connection, packets: &str) -> anyhow::Result<Vec<Restored>> {
        let total: i64 = self.ends.iter().map(|(partition, end)| end - self.lows[partition]).sum();
        let mut progress = Progress::new("restoring", total.max(0) as u64);
        let outbox = Outbox::connect(lost)?;
        let mut seen: BTreeMap<i32, Beginning> = BTreeMap::new();
        let mut done: BTreeMap<i32, Restored> =
            self.there.keys().map(|&partition| (partition, Restored { partition, ..Restored::default() })).collect();
        self.mirror.read(&self.lows, Some(&self.ends), |record| {
            let (partition, there) = (record.partition(), &self.there[&record.partition()]);
            let done = done.entry(partition).or_default();
            progress.advance(1);
            if done.already_there < there.records {
                let seen = seen.entry(partition).or_default();
                seen.add(record);
                done.already_there += 1;
                if seen.records == there.records && seen.digest.finalize() != there.digest.finalize() {
                    return Err(self.foreign(packets, partition));
                }
            } else {
                outbox.send(copy_of(record, packets)).with_context(|| format!("restoring {packets}-{partition}"))?;
                done.copied += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        outbox.finish()?;
        if let Some((&partition, _)) =
            self.there.iter().find(|(partition, there)| done[partition].already_there < there.records)
        {
            return Err(self.foreign(packets, partition));
        }
        Ok(done.into_values().collect())
    }

    fn foreign(&self, packets: &str, partition: i32) -> anyhow::Error {
        let records = count(self.there[&partition].records.unsigned_abs(), "record");
        anyhow::anyhow!(
            "{packets}-{partition} has {records} that are not the first of {}: its ingest has been started, or it was restored before. \
             Stop ingest and processor there, have sent again what it has acknowledged meanwhile, delete its topics, create \
             them (`relayctl topics apply`), and restore again",
            self.mirror.topic()
        )
    }
}

impl Beginning {
    fn add(&mut self, record: &BorrowedMessage<'_>) {
        self.records += 1;
        let mut part = |bytes: Option<&[u8]>| {
            // The length, so that no two different sequences of parts are the same bytes.
            self.digest.update(&bytes.map_or(-1, |bytes| bytes.len() as i64).to_le_bytes());
            self.digest.update(bytes.unwrap_or_default());
        };
        part(record.key());
        part(record.payload());
        part(Some(&record.timestamp().to_millis().unwrap_or(-1).to_le_bytes()));
        for header in record.headers().into_iter().flat_map(kafka::headers) {
            part(header.as_ref().map(|header| header.key.as_bytes()));
            part(header.and_then(|header| header.value));
        }
    }
}

/// The same partition, key, value, headers and time.
fn copy_of<'a>(record: &'a BorrowedMessage<'_>, topic: &'a str) -> BaseRecord<'a, [u8], [u8]> {
    let mut copy = BaseRecord::to(topic).partition(record.partition());
    copy.key = record.key();
    copy.payload = record.payload();
    copy.timestamp = record.timestamp().to_millis();
    copy.headers = record.headers().map(rdkafka::message::BorrowedHeaders::detach);
    copy
}
