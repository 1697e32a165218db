//! Carries out the plan's strikes, each at its time; they overlap. Afterwards everything is whole again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coderelay_devstack::{Action, Api, Error, Process, Rule, Stack};
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until};

use super::fault::{Fault, How, KafkaRequest, Mistreatment, Service, Strike};
use super::plan::TRAFFIC;
use super::world::World;

/// How long a processor that was a guest may take to leave.
const GRACE: Duration = Duration::from_secs(20);
/// How long the mirror may take to come back.
const MIRROR_PATIENCE: Duration = Duration::from_secs(180);
/// How long a server may take to be asked again after a fault.
const PATIENCE: Duration = Duration::from_secs(90);
/// A slow store goes and stands still once in so long.
const CYCLE: Duration = Duration::from_millis(500);
/// Between two looks whether a rule was applied.
const LOOK: Duration = Duration::from_millis(100);

/// Does it, and waits until all of it is over. The kinds of faults that happened, each as often as it did: a request that is never made
/// cannot be mistreated, and a service that is just being started again not killed.
///
/// # Errors
/// When a process cannot be signalled or does not come back.
pub async fn strike(world: &World<'_>, strikes: &[Strike], began: Instant) -> Result<Vec<String>> {
    let strikes = strikes.iter().map(|Strike { at, fault }| async move {
        sleep_until(began + *at).await;
        world.history.note(format!("strike: {fault:?}"));
        let times = inflict(world, fault).await.with_context(|| format!("{fault:?} failed"))?;
        world.history.note(format!("over: {fault:?}"));
        anyhow::Ok((0..times).map(|_| fault.kind()).collect::<Vec<_>>())
    });
    let done = try_join_all(strikes).await?.concat();
    // Two faults of one node may have crossed each other. All are started before any is waited for: one broker alone is no quorum.
    let nodes = || world.stacks().iter().flat_map(Stack::nodes);
    for node in nodes() {
        node.start()?;
        node.resume().await?;
    }
    for node in nodes() {
        node.ready().await?;
    }
    if let Ok(mirror) = world.mirror() {
        until_it_mirrors(mirror.process()).await?;
    }
    Ok(done)
}

/// Its supervisor may end and start it again meanwhile.
async fn until_it_mirrors(mirror: &Process) -> Result<()> {
    let since = Instant::now();
    while let Err(reason) = mirror.is_ready().await {
        ensure!(since.elapsed() < MIRROR_PATIENCE, "{} is not ready: {reason}", mirror.name());
        sleep(LOOK).await;
    }
    Ok(())
}

/// How often it happened.
async fn inflict(world: &World<'_>, fault: &Fault) -> Result<u64> {
    match fault {
        Fault::Kill(service) => {
            let Some(process) = running(world, *service) else { return Ok(0) };
            process.kill().await?;
        }
        Fault::Restart(service) => {
            let Some(process) = running(world, *service) else { return Ok(0) };
            process.stop(GRACE).await?;
        }
        Fault::Freeze(service, duration) => {
            let Some(process) = running(world, *service) else { return Ok(0) };
            freeze(&process, *duration).await;
        }
        Fault::Twin(number, duration) => {
            let twin = world.twin(*number)?;
            sleep(*duration).await;
            twin.kill().await?;
        }
        Fault::Join(region, duration) => {
            let guest = world.guest(*region)?;
            sleep(*duration).await;
            guest.stop(GRACE).await?;
        }
        Fault::KillBrokers(brokers, duration) => {
            for broker in brokers {
                world.broker(*broker).kill().await?;
            }
            sleep(*duration).await;
            for broker in brokers {
                world.broker(*broker).start()?;
            }
        }
        Fault::FreezeBroker(broker, duration) => freeze(world.broker(*broker), *duration).await,
        Fault::RollBroker(broker) => {
            let broker = world.broker(*broker);
            broker.stop(GRACE).await?;
            broker.start()?;
        }
        Fault::FillBrokerDisk(broker, duration) => return fill(world.broker(*broker), *duration).await,
        Fault::FillStoreDisk(region, duration) => return fill(world.stacks()[*region].cql(), *duration).await,
        Fault::KillStore(region, duration) => {
            let store = world.stacks()[*region].cql();
            store.kill().await?;
            sleep(*duration).await;
            store.start()?;
        }
        Fault::FreezeStore(region, duration) => freeze(world.stacks()[*region].cql(), *duration).await,
        Fault::SlowStore(region, duration) => {
            let (store, since) = (world.stacks()[*region].cql(), Instant::now());
            while since.elapsed() < *duration {
                freeze(store, CYCLE * 4 / 5).await;
                sleep(CYCLE / 5).await;
            }
        }
        Fault::RefuseStore(region, duration) => return refuse(world, *region, *duration).await,
        Fault::Request(mistreatment) => return Ok(mistreat(world, mistreatment).await),
        Fault::KillMirror => {
            world.mirror()?.process().kill().await?;
        }
        Fault::FreezeMirror(duration) => freeze(world.mirror()?.process(), *duration).await,
        Fault::FailMirrorTask(region, duration) => return fail_task(world, *region, *duration).await,
        Fault::CutLink(duration) => {
            world.link()?.cut();
            sleep(*duration).await;
            world.link()?.heal();
        }
        Fault::LoseRegion(region, duration) => lose(world, *region, *duration).await?,
    }
    Ok(1)
}

fn running(world: &World<'_>, service: Service) -> Option<Arc<Process>> {
    world.keeper(service).process().filter(|process| process.is_running())
}

/// All at once: its servers and its services, which their keepers start again at once, to wait for the servers.
async fn lose(world: &World<'_>, region: usize, duration: Duration) -> Result<()> {
    let stack = &world.stacks()[region];
    let services: Vec<_> = world.services(region).filter_map(|service| running(world, service)).collect();
    let services = try_join_all(services.iter().map(|service| service.kill()));
    tokio::try_join!(stack.kill(), services)?;
    sleep(duration).await;
    for node in stack.nodes() {
        node.start()?;
    }
    Ok(())
}

/// A process that ends meanwhile, or another fault lets go on, is left alone.
async fn freeze(process: &Process, duration: Duration) {
    if process.pause().await.is_ok() {
        sleep(duration).await;
        let _ = process.resume().await;
    }
}

/// A server whose disk is full ends, or stays and refuses to work: somebody makes room and starts it again. How often its disk was full.
async fn fill(server: &Process, duration: Duration) -> Result<u64> {
    match server.fill_disk().await {
        Err(Error::NotRunning { .. }) => return Ok(0),
        filled => filled?,
    }
    sleep(duration).await;
    server.kill().await?;
    server.start()?;
    Ok(1)
}

/// Has the store keep more copies than it has nodes: there is no quorum then. A store that is away is not asked.
async fn refuse(world: &World<'_>, region: usize, duration: Duration) -> Result<u64> {
    let stack = &world.stacks()[region];
    let refused = stack.replicate_keyspace(&world.keyspace, 2).await;
    if refused.is_ok() {
        sleep(duration).await;
    }
    let healed = async || stack.replicate_keyspace(&world.keyspace, 1).await;
    until_done("the store does not take one copy for enough", healed).await?;
    Ok(u64::from(refused.is_ok()))
}

/// Has the brokers take no record, however small, of what the mirror brings. Nothing is done before it has brought any.
async fn fail_task(world: &World<'_>, region: usize, duration: Duration) -> Result<u64> {
    let (stack, topic) = (&world.stacks()[region], &world.regions[region].sources[1]);
    let Ok(config) = stack.topic_config(topic).await else { return Ok(0) };
    let limit = [("max.message.bytes".to_owned(), "1".to_owned())];
    let limited = config.clone().into_iter().chain(limit).collect();
    let failed = stack.set_topic_config(topic, &limited).await;
    if failed.is_ok() {
        sleep(duration).await;
    }
    until_done("the brokers do not take the mirror's records again", async || {
        stack.set_topic_config(topic, &config).await
    })
    .await?;
    Ok(u64::from(failed.is_ok()))
}

/// Undoes something, also where the server is away because of another fault.
async fn until_done(what: &'static str, undo: impl AsyncFn() -> Result<(), Error>) -> Result<()> {
    let since = Instant::now();
    while let Err(error) = undo().await {
        if since.elapsed() > PATIENCE {
            return Err(error).context(what);
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until as many requests were mistreated as planned, for as long as there is traffic to mistreat. How many were.
async fn mistreat(world: &World<'_>, mistreatment: &Mistreatment) -> u64 {
    // The link of mirrored regions leads to the first of them.
    let interception = world.stacks()[0].intercept(rule(mistreatment));
    let deadline = Instant::now() + TRAFFIC;
    while interception.hits() < mistreatment.times && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    u64::from(interception.hits())
}

fn rule(mistreatment: &Mistreatment) -> Rule {
    let Mistreatment { request, how, skip, times } = *mistreatment;
    let api = match request {
        KafkaRequest::Produce => Api::Produce,
        KafkaRequest::OffsetFetch => Api::OffsetFetch,
        KafkaRequest::InitProducerId => Api::InitProducerId,
        KafkaRequest::AddPartitionsToTxn => Api::AddPartitionsToTxn,
        KafkaRequest::AddOffsetsToTxn => Api::AddOffsetsToTxn,
        KafkaRequest::EndTxn => Api::EndTxn,
        KafkaRequest::TxnOffsetCommit => Api::TxnOffsetCommit,
    };
    let action = match how {
        How::Late(delay) => Action::DelayRequest(delay),
        How::LateResponse(delay) => Action::DelayResponse(delay),
        How::ResponseLost => Action::DropResponse,
        How::Lost => Action::CutBeforeRequest,
        How::Stray(delay) => Action::Stray(delay),
    };
    Rule { api, skip, times, action }
}
