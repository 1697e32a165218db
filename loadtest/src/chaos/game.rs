//! One seed from its first process to its verdict.
//!
//! ```text
//! plan ─▶ world ─▶ producers ∥ junk ∥ strikes ∥ witness ─▶ rest ─▶ replay, everything once more ─▶ rest ─▶ evidence ─▶ verdict
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use coderelay_schemas::pb::CodePacket;
use futures::future::join_all;
use prost::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};
use time::OffsetDateTime;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};

use super::edges;
use super::evidence::Evidence;
use super::expected::expired;
use super::fault::Service;
use super::history::Event;
use super::nemesis;
use super::packets::Packets;
use super::plan::{Junk, JunkKind, Plan, Request, TRAFFIC, Version, Way};
use super::producer::Producer;
use super::replay;
use super::rest;
use super::stacks;
use super::verdict::{Kind, Violation, judge};
use super::witness::Witness;
use super::world::{self, Programs, World};
use crate::pipeline::Servers;

/// How long the pipeline may take to come to rest once everything is whole.
const REST: Duration = Duration::from_secs(90);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// Between two notes of what it waits for.
const NOTED: Duration = Duration::from_secs(5);
/// On a machine so slow that what is replayed expires again, the verdict says what never came back.
const REPLAYS_MAX: usize = 8;
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
    /// Transactions that Kafka has left open for ever (KAFKA-5202): a pipeline that does not come to rest then says nothing of itself.
    pub hanging: Vec<String>,
    /// What happened.
    pub history: Vec<Event>,
}

/// Plays `plan`, for the `attempt`th time on these servers, from 0. Every process logs into `folder`, where plan and history are left, too.
///
/// # Errors
/// When the world could not be made or looked at: nothing is known of its promises then.
pub async fn play(servers: &Servers, programs: &Programs, plan: &Plan, attempt: u32, folder: &Path) -> Result<Outcome> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(folder.join("plan.json"), serde_json::to_string_pretty(plan)?)?;
    let world = World::begin(servers, programs, plan, attempt, folder).await?;
    let history = world.history.clone();
    let (topics, keyspace) = (world.topics.clone(), world.keyspace.clone());
    let outcome = observe(world, plan, folder).await;
    history.write(&folder.join("history.jsonl"))?;
    let outcome = outcome?;
    if outcome.violations.is_empty() {
        world::clear(servers, &topics, &keyspace).await?;
    }
    Ok(outcome)
}

async fn observe(world: World<'_>, plan: &Plan, folder: &Path) -> Result<Outcome> {
    // Whole milliseconds, as CQL has them.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let packets = Arc::new(Packets::new(plan.seed, plan.packets(), UNIX_EPOCH + Duration::from_millis(now)));
    let witnesses = world.regions.iter().map(|region| block_in_place(|| Witness::begin(region)));
    let witnesses: Vec<_> = witnesses.collect::<Result<_>>()?;
    for region in 0..world.regions.len() {
        let ingest = world.keeper(Service::Ingest(region));
        while ingest.process().is_none() {
            sleep(LOOK).await;
        }
    }

    let began = Instant::now();
    let produce = async {
        let producers = plan.producers.iter().enumerate();
        join_all(producers.map(|(number, requests)| producer(&world, &packets, number, began).run(requests.clone())))
            .await
    };
    let schema = create_schema(&world, plan.schema_at.map(|at| began + at));
    let junk = scatter(&world, &packets, &plan.junk, began);
    let replay = replay_early(&world, plan.replay_at.map(|at| began + at));
    let strikes = nemesis::strike(&world, &plan.strikes, began);
    let (missing, junk, schema, (), strikes) = tokio::join!(produce, junk, schema, replay, strikes);
    junk?;
    schema?;
    let strikes = strikes?;
    world.history.note("everything is whole again");

    let mut violations = Vec::new();
    let mut missing: Vec<Version> = missing.into_iter().flatten().collect();
    violations.extend(await_rest(&world).await);
    if violations.is_empty() && plan.replay_at.is_some() {
        violations.extend(replay_all(&world).await);
    }
    if violations.is_empty() {
        // Whatever a memory has lost meanwhile would be published again now.
        let again = plan.producers.iter().flatten().flat_map(|request| &request.packets).copied();
        let again: Vec<_> = again.filter(|version| version.content == 0).collect();
        let requests = again.chunks(AGAIN);
        let requests =
            requests.map(|packets| Request { at: Duration::ZERO, way: Way::Batch, packets: packets.to_vec() });
        missing.extend(producer(&world, &packets, plan.producers.len(), Instant::now()).run(requests.collect()).await);
        violations.extend(await_rest(&world).await);
    }
    let mut hanging = Vec::new();
    if !violations.is_empty() {
        stacks::write(&world, folder).await;
        match world.hanging_transactions().await {
            Ok(found) => hanging = found,
            Err(error) => world.history.note(format!("whether transactions hang is not known: {error:#}")),
        }
    }
    for version in missing {
        let what = "never acknowledged, however often it was sent".to_owned();
        violations.push(Violation { kind: Kind::Liveness, packet: Some(version.packet), what });
    }
    let at_rest = violations.is_empty();
    let events = world.history.events();
    let evidence = gather(&world, witnesses).await;
    let history = world.history.clone();
    world.end().await?;
    let mut outcome = Outcome { violations, hanging, history: events, ..Outcome::default() };
    match evidence {
        // A pipeline that stands still has not done what it should have; its other promises cannot be judged.
        Ok(evidence) if at_rest => {
            outcome.violations.extend(judge(&packets, &outcome.history, &evidence)?);
            for region in &evidence {
                outcome.taken += region.own().records.iter().flatten().count() as u64;
                outcome.published += region.deduped.iter().flatten().count() as u64;
                let expired = expired(region).len() as u64;
                if expired > 0 {
                    *outcome.hits.entry("record expired".to_owned()).or_default() += expired;
                }
            }
        }
        Ok(_) => {}
        Err(error) => {
            history.note(format!("no evidence: {error:#}"));
            let what = format!("{error:#}");
            outcome.violations.push(Violation { kind: Kind::Liveness, packet: None, what });
        }
    }
    for hit in strikes.into_iter().chain(edges::hit(folder)?).chain(weather(plan)) {
        *outcome.hits.entry(hit).or_default() += 1;
    }
    Ok(outcome)
}

/// Makes the schema when it is time for it; stores that are away then are waited for.
async fn create_schema(world: &World<'_>, at: Option<Instant>) -> Result<()> {
    let Some(at) = at else { return Ok(()) };
    sleep_until(at).await;
    while let Err(error) = world.create_schema().await {
        world.history.note(format!("no schema yet: {error:#}"));
        ensure!(at.elapsed() < REST, "no schema: {error:#}");
        sleep(LOOK).await;
    }
    world.history.note("there is a schema");
    Ok(())
}

/// Replays what has expired when it is time for it, amid all faults: it may fail.
async fn replay_early(world: &World<'_>, at: Option<Instant>) {
    let Some(at) = at else { return };
    sleep_until(at).await;
    for region in &world.regions {
        match replay::replay(region, None).await {
            Ok(replayed) => world.history.note(format!("{replayed} records that expired are replayed")),
            Err(error) => world.history.note(format!("what expired is not replayed: {error:#}")),
        }
    }
}

/// Replays what has expired, what was replayed amid the faults once more, until nothing expires again.
async fn replay_all(world: &World<'_>) -> Option<Violation> {
    for region in &world.regions {
        let mut since = None;
        for _ in 0..REPLAYS_MAX {
            let started = OffsetDateTime::now_utc();
            match replay::replay(region, since.replace(started)).await {
                Ok(0) => break,
                Ok(replayed) => world.history.note(format!("{replayed} records that expired are replayed")),
                Err(error) => {
                    let what = format!("what expired is not replayed: {error:#}");
                    return Some(Violation { kind: Kind::Liveness, packet: None, what });
                }
            }
            let unrest = await_rest(world).await;
            if unrest.is_some() {
                return unrest;
            }
        }
    }
    None
}

/// What holds for a whole seed.
fn weather(plan: &Plan) -> impl Iterator<Item = String> {
    let little_room = plan.room.map(|_| "ingest with little room".to_owned());
    let late = plan.schema_at.map(|_| "schema missing".to_owned());
    let clocks = (plan.clocks.len() > 1).then(|| "clocks that jump".to_owned());
    little_room.into_iter().chain(late).chain(clocks)
}

async fn gather(world: &World<'_>, witnesses: Vec<Witness>) -> Result<Vec<Evidence>> {
    let mut evidence = Vec::new();
    for (region, witness) in world.regions.iter().zip(witnesses) {
        let read = block_in_place(|| witness.finish())?;
        evidence.push(Evidence::gather(region, read).await?);
    }
    Ok(evidence)
}

fn producer(world: &World<'_>, packets: &Arc<Packets>, number: usize, began: Instant) -> Producer {
    Producer {
        number,
        endpoints: world.regions.iter().map(|region| region.endpoint.clone()).collect(),
        packets: packets.clone(),
        history: world.history.clone(),
        began,
        patience: TRAFFIC + REST,
    }
}

/// Waits until everything has come to rest.
async fn await_rest(world: &World<'_>) -> Option<Violation> {
    let since = Instant::now();
    let mut notes = 0;
    loop {
        let Err(moves) = block_in_place(|| rest::is_at_rest(&world.regions)) else {
            world.history.note("everything is at rest");
            return None;
        };
        if since.elapsed() > NOTED * notes {
            world.history.note(format!("not at rest: {moves}"));
            notes += 1;
        }
        if since.elapsed() > REST {
            return Some(Violation { kind: Kind::Liveness, packet: None, what: moves });
        }
        sleep(LOOK).await;
    }
}

/// Writes what is no packet.
async fn scatter(world: &World<'_>, packets: &Packets, junk: &[Junk], began: Instant) -> Result<()> {
    let clients = world.stacks().iter().map(|stack| stack.kafka_client().set("acks", "all").create());
    let producers: Vec<FutureProducer> = clients.collect::<Result<_, _>>()?;
    for (Junk { at, kind }, producer) in junk.iter().zip(producers.iter().cycle()) {
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
