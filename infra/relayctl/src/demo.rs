//! `relayctl demo`: a repository relayed twice and stored once, with the evidence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use coderelay_schemas::validate::PacketLimits;
use rdkafka::{Offset, TopicPartitionList};

use crate::connect::Connection;
use crate::delivery::{Delivery, deliver};
use crate::evidence::{Evidence, Run};
use crate::exit::{Exit, Refusal};
use crate::findings::Before;
use crate::groups::{GROUP, committed_offsets};
use crate::output::Output;
use crate::packer::Packer;
use crate::progress::{Progress, remark};
use crate::source::{Source, expand, repository};

/// Metadata key of a run's packets: a second demo on the same deployment sends packets of its own.
const RUN: &str = "demo-run";

/// Push a repository twice, wait for the processor, and show that every packet was stored once
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Files or folders (in a git checkout: the tracked files)
    #[arg(default_value = ".", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Repository id [default: owner/name of the git remote, else the name of the top folder]
    #[arg(long)]
    repo: Option<String>,
    /// The processor's consumer group
    #[arg(long, default_value = GROUP)]
    group: String,
    /// How long to wait for the processor, and for ingest to answer
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Runs the verb. [`Exit::Failure`] where any number is not the expected one.
pub(crate) async fn run(args: DemoArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let sources: Arc<[Source]> = expand(&args.paths)?.into();
    if sources.is_empty() {
        bail!(Refusal::Usage("no files to push: is anything tracked by git here?".to_owned()));
    }
    let first = args.paths.first().map_or(Path::new("."), PathBuf::as_path);
    let created_at = SystemTime::now();
    let packer = Arc::new(Packer {
        repo_id: args.repo.clone().map_or_else(|| repository(first), Ok)?,
        metadata: BTreeMap::from([(RUN.to_owned(), humantime::format_rfc3339_millis(created_at).to_string())]),
        created_at,
        limits: PacketLimits::default(),
        strict: true,
    });

    let before = Before::mark(connection).await?;
    let mut deliveries = Vec::new();
    // The evidence is of one deployment, so packets must not go to another.
    let ingest: Vec<_> = connection.channels()?.into_iter().take(1).collect();
    for what in ["first pass", "second pass"] {
        let sources = Arc::clone(&sources);
        let delivery = deliver(Arc::clone(&packer), sources, ingest.clone(), None, args.timeout, what).await?;
        if let Some(gave_up) = &delivery.gave_up {
            bail!("{what}: {gave_up}");
        }
        deliveries.push(delivery);
    }
    for (tag, skip) in deliveries[0].skipped() {
        remark(&format!("skipped {}: {skip}", sources[tag].label));
    }
    for receipt in deliveries.iter().flat_map(|delivery| &delivery.receipts) {
        if let Err(rejection) = &receipt.outcome {
            remark(&format!("rejected {}: {}: {}", sources[receipt.tag].label, rejection.reason, rejection.message));
        }
    }

    let goal = goal(&deliveries);
    let behind = tokio::task::block_in_place(|| await_processor(&args, &goal, connection))?;
    if behind > 0 {
        remark(&format!(
            "after {:?} consumer group {} is still {behind} records behind what ingest acknowledged; is the processor \
             running, and is this its group?",
            args.timeout, args.group
        ));
    }
    let run = Run { repo_id: packer.repo_id.clone(), created_at, sources, deliveries, behind };
    let evidence = Evidence::gather(&run, &before, connection).await?;
    evidence.show(output)?;
    Ok(if evidence.holds() { Exit::Success } else { Exit::Failure })
}

/// Where the processor's committed offsets must be: past every acknowledged record.
fn goal(deliveries: &[Delivery]) -> BTreeMap<(String, i32), i64> {
    let mut goal = BTreeMap::new();
    for committed in deliveries.iter().flat_map(|delivery| &delivery.receipts).filter_map(|r| r.outcome.as_ref().ok()) {
        let offset: &mut i64 = goal.entry((committed.topic.clone(), committed.partition)).or_default();
        *offset = (*offset).max(committed.offset + 1);
    }
    goal
}

/// Waits until the group has committed the goal; answers how many records it is behind at the end. Blocks.
fn await_processor(
    args: &DemoArgs,
    goal: &BTreeMap<(String, i32), i64>,
    connection: &Connection,
) -> anyhow::Result<i64> {
    let consumer = connection.consumer(&args.group)?;
    let mut wanted = TopicPartitionList::new();
    for (topic, partition) in goal.keys() {
        wanted.add_partition_offset(topic, *partition, Offset::Invalid)?;
    }
    let deadline = Instant::now() + args.timeout;
    let mut progress = None;
    loop {
        let committed = committed_offsets(&consumer, wanted.clone())?;
        let distance =
            |(place, end): (&(String, i32), &i64)| end - committed.get(place).copied().flatten().unwrap_or(0);
        let behind: i64 = goal.iter().map(distance).map(|distance| distance.max(0)).sum();
        let (length, progress) = progress.get_or_insert_with(|| (behind, Progress::new("processing", behind as u64)));
        progress.set((*length - behind).max(0) as u64);
        if behind == 0 || Instant::now() >= deadline {
            return Ok(behind);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::{Receipt, Rejection};
    use coderelay_schemas::pb::Committed;

    #[test]
    fn the_goal_is_past_the_last_acknowledged_record_of_each_partition() {
        let receipt = |outcome| Receipt { tag: 0, packet_id: None, attempts: 1, outcome };
        let committed = |partition, offset| receipt(Ok(Committed { topic: "t".into(), partition, offset }));
        let refused = receipt(Err(Rejection { reason: "X".into(), message: String::new() }));
        let delivery = Delivery {
            manifests: Vec::new(),
            receipts: vec![committed(0, 7), committed(0, 3), refused, committed(2, 0)],
            endpoints: Vec::new(),
            reconnections: 0,
            gave_up: None,
            took: Duration::ZERO,
        };
        let goal = goal(&[delivery]);
        assert_eq!(goal, BTreeMap::from([(("t".to_owned(), 0), 8), (("t".to_owned(), 2), 1)]));
    }
}
