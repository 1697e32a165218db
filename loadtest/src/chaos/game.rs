//! One seed from its first process to its verdict.
//!
//! ```text
//! plan ─▶ world ─▶ producers ∥ junk ∥ strikes ∥ witness ─▶ rest ─▶ everything once more ─▶ rest ─▶ evidence ─▶ verdict
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use coderelay_devstack::Stack;
use coderelay_schemas::pb::CodePacket;
use futures::future::join_all;
use prost::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};

use super::edges;
use super::evidence::Evidence;
use super::history::Event;
use super::nemesis;
use super::packets::Packets;
use super::plan::{Junk, JunkKind, Plan, Request, Service, TRAFFIC, Version, Way};
use super::producer::Producer;
use super::verdict::{Kind, Violation, judge};
use super::witness::Witness;
use super::world::{Programs, World};
use crate::backlog::Backlog;
use crate::pipeline::remove;

/// How long the pipeline may take to come to rest once everything is whole.
const REST: Duration = Duration::from_secs(90);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// Packets of a request when everything is sent once more.
const AGAIN: usize = 100;

/// What came of a seed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// How often what happened: edges at which a processor crashed, and other faults.
    pub hits: BTreeMap<String, u64>,
    /// Records that were taken into the packets topic, whoever wrote them.
    pub taken: u64,
    /// Records that were published.
    pub published: u64,
    /// What happened.
    pub history: Vec<Event>,
}

/// Plays `plan`. Every process logs into `folder`, where plan and history are left, too.
///
/// # Errors
/// When the world could not be made or looked at: nothing is known of its promises then.
pub async fn play(stack: &Stack, programs: &Programs, plan: &Plan, folder: &Path) -> Result<Outcome> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(folder.join("plan.json"), serde_json::to_string_pretty(plan)?)?;
    let world = World::begin(stack, programs, plan, folder).await?;
    let history = world.history.clone();
    let (topics, keyspace) = (world.topics.clone(), world.keyspace.clone());
    let outcome = observe(world, plan, folder).await;
    history.write(&folder.join("history.jsonl"))?;
    let outcome = outcome?;
    if outcome.violations.is_empty() {
        remove(&stack.bootstrap_servers(), &stack.cql_contact(), &topics, &keyspace).await?;
    }
    Ok(outcome)
}

async fn observe(world: World<'_>, plan: &Plan, folder: &Path) -> Result<Outcome> {
    // Whole milliseconds, as CQL has them.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let packets = Arc::new(Packets::new(plan.seed, plan.packets(), UNIX_EPOCH + Duration::from_millis(now)));
    let topics = &world.topics;
    let bootstrap = world.stack.bootstrap_servers();
    let backlog = block_in_place(|| Backlog::watch(&bootstrap, &world.group, std::slice::from_ref(&topics.packets)))?;
    let witness = block_in_place(|| Witness::begin(&bootstrap, &topics.deduped))?;
    let ingest = world.keeper(Service::Ingest);
    while ingest.process().is_none() {
        sleep(LOOK).await;
    }

    let began = Instant::now();
    let produce = async {
        let producers = plan.producers.iter().enumerate();
        join_all(producers.map(|(number, requests)| producer(&world, &packets, number, began).run(requests.clone())))
            .await
    };
    let junk = scatter(&world, &packets, &plan.junk, began);
    let (missing, junk, strikes) = tokio::join!(produce, junk, nemesis::strike(&world, &plan.strikes, began));
    junk?;
    let strikes = strikes?;
    world.history.note("everything is whole again");

    let mut violations = Vec::new();
    let mut missing: Vec<Version> = missing.into_iter().flatten().collect();
    violations.extend(rest(&world, &backlog).await);
    if violations.is_empty() {
        // Whatever a memory has lost meanwhile would be published again now.
        let again = plan.producers.iter().flatten().flat_map(|request| &request.packets).copied();
        let again: Vec<_> = again.filter(|version| version.content == 0).collect();
        let requests = again.chunks(AGAIN);
        let requests =
            requests.map(|packets| Request { at: Duration::ZERO, way: Way::Batch, packets: packets.to_vec() });
        missing.extend(producer(&world, &packets, plan.producers.len(), Instant::now()).run(requests.collect()).await);
        violations.extend(rest(&world, &backlog).await);
    }
    for version in missing {
        let what = "never acknowledged, however often it was sent".to_owned();
        violations.push(Violation { kind: Kind::Liveness, packet: Some(version.packet), what });
    }
    let at_rest = violations.is_empty();
    let events = world.history.events();
    let evidence = match block_in_place(|| witness.finish()) {
        Ok(witnessed) => Evidence::gather(&world, witnessed).await,
        Err(error) => Err(error),
    };
    let history = world.history.clone();
    world.end().await?;
    let mut outcome = Outcome { violations, history: events, ..Outcome::default() };
    match evidence {
        // A pipeline that stands still has not done what it should have; its other promises cannot be judged.
        Ok(evidence) if at_rest => {
            outcome.violations.extend(judge(&packets, &outcome.history, &evidence)?);
            outcome.taken = evidence.source.iter().flatten().count() as u64;
            outcome.published = evidence.deduped.iter().flatten().count() as u64;
        }
        Ok(_) => {}
        Err(error) => {
            history.note(format!("no evidence: {error:#}"));
            let what = format!("{error:#}");
            outcome.violations.push(Violation { kind: Kind::Liveness, packet: None, what });
        }
    }
    for hit in strikes.into_iter().chain(edges::crashed(folder)?) {
        *outcome.hits.entry(hit).or_default() += 1;
    }
    Ok(outcome)
}

fn producer(world: &World<'_>, packets: &Arc<Packets>, number: usize, began: Instant) -> Producer {
    Producer {
        number,
        endpoint: world.endpoint.clone(),
        packets: packets.clone(),
        history: world.history.clone(),
        began,
        deadline: Instant::now() + TRAFFIC + REST,
    }
}

/// Waits until the group has committed all that is in its topic.
async fn rest(world: &World<'_>, backlog: &Backlog) -> Option<Violation> {
    let (called, deadline) = (std::time::Instant::now(), Instant::now() + REST);
    loop {
        let latest = backlog.latest().filter(|look| look.at > called);
        if latest.is_some_and(|look| look.waiting() == 0) {
            return None;
        }
        if Instant::now() > deadline {
            let what = match latest {
                Some(look) => format!("{} records wait and nothing moves", look.waiting()),
                None => "the brokers do not tell how far the group is".to_owned(),
            };
            world.history.note(&what);
            return Some(Violation { kind: Kind::Liveness, packet: None, what });
        }
        sleep(LOOK).await;
    }
}

/// Writes what is no packet.
async fn scatter(world: &World<'_>, packets: &Packets, junk: &[Junk], began: Instant) -> Result<()> {
    let producer: FutureProducer = world.stack.kafka_client().set("acks", "all").create()?;
    for Junk { at, kind } in junk {
        sleep_until(began + *at).await;
        let packet: CodePacket = packets.packet(Version { packet: 0, content: 0 })?;
        let (key, value) = match kind {
            JunkKind::Undecodable => (packet.repo_id.clone(), Some(b"\xff\xff no packet".to_vec())),
            JunkKind::Tombstone => (packet.repo_id.clone(), None),
            JunkKind::WrongKey => ("another".to_owned(), Some(packet.encode_to_vec())),
        };
        let mut record = FutureRecord::to(&world.topics.packets).key(&key);
        record.payload = value.as_deref();
        let sent = producer.send(record, Duration::from_secs(60)).await;
        sent.map_err(|(error, _)| anyhow!("a record that is no packet could not be written: {error}"))?;
    }
    Ok(())
}
