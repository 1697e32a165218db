//! Carries out the plan's strikes, each at its time; they overlap. Afterwards everything is whole again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use coderelay_devstack::{Action, Api, Process, Rule};
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until};

use super::plan::{Fault, How, KafkaRequest, Mistreatment, Service, Strike, TRAFFIC};
use super::world::World;

/// How long a processor that was a guest may take to leave.
const GRACE: Duration = Duration::from_secs(20);
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
    for node in world.stack.nodes() {
        node.start()?;
        node.resume().await?;
    }
    for node in world.stack.nodes() {
        node.ready().await?;
    }
    Ok(done)
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
        Fault::Join(duration) => {
            let guest = world.guest()?;
            sleep(*duration).await;
            guest.stop(GRACE).await?;
        }
        Fault::KillBrokers(brokers, duration) => {
            for broker in brokers {
                world.stack.broker(*broker).kill().await?;
            }
            sleep(*duration).await;
            for broker in brokers {
                world.stack.broker(*broker).start()?;
            }
        }
        Fault::FreezeBroker(broker, duration) => freeze(world.stack.broker(*broker), *duration).await,
        Fault::RollBroker(broker) => {
            let broker = world.stack.broker(*broker);
            broker.stop(GRACE).await?;
            broker.start()?;
        }
        Fault::KillStore(duration) => {
            world.stack.cql().kill().await?;
            sleep(*duration).await;
            world.stack.cql().start()?;
        }
        Fault::FreezeStore(duration) => freeze(world.stack.cql(), *duration).await,
        Fault::Request(mistreatment) => return Ok(mistreat(world, mistreatment).await),
    }
    Ok(1)
}

fn running(world: &World<'_>, service: Service) -> Option<Arc<Process>> {
    world.keeper(service).process().filter(|process| process.is_running())
}

/// A process that ends meanwhile, or another fault lets go on, is left alone.
async fn freeze(process: &Process, duration: Duration) {
    if process.pause().await.is_ok() {
        sleep(duration).await;
        let _ = process.resume().await;
    }
}

/// Waits until as many requests were mistreated as planned, for as long as there is traffic to mistreat. How many were.
async fn mistreat(world: &World<'_>, mistreatment: &Mistreatment) -> u64 {
    let interception = world.stack.intercept(rule(mistreatment));
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
