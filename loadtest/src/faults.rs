//! What is done to the parts while they work: killed, restarted, paused, slowed down.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use coderelay_devstack::{MirrorMaker, Process, Regions};
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until};

use crate::audits::Audits;
use crate::backlog::{Backlog, Movement};
use crate::pipeline::{Own, Pipeline};
use crate::scenario::{Action, Fault, Target};
use crate::timeline::Timeline;

/// A processor that moves nothing for so long is not waited for.
const STANDSTILL: Duration = Duration::from_secs(20);
/// A slowed process is stopped once in this.
const CYCLE: Duration = Duration::from_millis(100);

/// Does what the scenario says, each fault at its time since `started`; they may overlap. How many packets would have been lost with the
/// regions that were killed, had none of them come back.
///
/// # Errors
/// When a process cannot be signalled or does not come back.
pub async fn inject(
    faults: &[Fault],
    pipeline: &Pipeline,
    audits: &Audits,
    backlogs: &[Arc<Backlog>],
    started: Instant,
    timeline: &Timeline,
) -> Result<u64> {
    let inject = faults.iter().map(|fault| async move {
        sleep_until(started + fault.at.get()).await;
        let (name, target) = (name(fault.action), target(fault, pipeline));
        timeline.event(&format!("{name} of {target}"));
        let done = inflict(fault, pipeline, audits, backlogs).await;
        let exposed = done.with_context(|| format!("{name} of {target} failed"))?;
        timeline.event(&format!("{target} is back"));
        anyhow::Ok(exposed)
    });
    Ok(try_join_all(inject).await?.into_iter().sum())
}

/// Lets everything that was stopped for a fault go on, where the run is ended in the middle of one.
///
/// # Errors
/// When a process cannot be signalled.
pub async fn lift(faults: &[Fault], pipeline: &Pipeline) -> Result<()> {
    for fault in faults {
        let own = own(fault, pipeline)?;
        match fault.target {
            Target::Ingest => resume(own.ingest.process().as_deref()).await?,
            Target::Processor => resume(own.processor.process().as_deref()).await?,
            Target::Broker => resume(Some(own.stack().broker(0))).await?,
            Target::Store => resume(Some(own.stack().cql())).await?,
            Target::Mirror => resume(own.servers.mirror().map(MirrorMaker::process)).await?,
            Target::Link => own.servers.regions().into_iter().for_each(Regions::heal),
            // It is not there, and its services end with the run.
            Target::Region => {}
        }
    }
    Ok(())
}

async fn resume(process: Option<&Process>) -> Result<()> {
    match process.filter(|process| process.is_running()) {
        Some(process) => Ok(process.resume().await?),
        None => Ok(()),
    }
}

fn own<'a>(fault: &Fault, pipeline: &'a Pipeline) -> Result<&'a Own> {
    let region = pipeline.regions.get(fault.region).and_then(|region| region.own.as_ref());
    region.context("faults need a stack of one's own")
}

async fn inflict(fault: &Fault, pipeline: &Pipeline, audits: &Audits, backlogs: &[Arc<Backlog>]) -> Result<u64> {
    let own = own(fault, pipeline)?;
    match fault.target {
        Target::Ingest => act(fault, &*own.ingest.start()?).await?,
        Target::Processor => act(fault, &*own.processor.start()?).await?,
        Target::Broker => act(fault, own.stack().broker(0)).await?,
        Target::Store => act(fault, own.stack().cql()).await?,
        Target::Mirror => act(fault, own.servers.mirror().context("there is no mirror")?.process()).await?,
        Target::Link => {
            let regions = own.servers.regions().context("there is no link")?;
            regions.cut();
            sleep(fault.duration.get()).await;
            regions.heal();
        }
        Target::Region => {
            // What the mirror has read and not yet written dies with the region, as if it had stood there. Its supervisor starts it again.
            let mirror = own.servers.mirror().context("there is no mirror")?.process();
            tokio::try_join!(own.kill(), async { Ok(mirror.kill().await?) })?;
            sleep(fault.duration.get()).await;
            // It takes nothing meanwhile: what the others lack when they have processed all that they have was there alone.
            for (_, survivor) in backlogs.iter().enumerate().filter(|(region, _)| *region != fault.region) {
                processed(survivor).await;
            }
            let exposed = audits.exposed(fault.region);
            own.restart().await?;
            return Ok(exposed);
        }
    }
    Ok(0)
}

/// Waits until all that is in a region's topics now is processed there; while that moves.
async fn processed(backlog: &Backlog) {
    let (called, mut end, mut movement) = (std::time::Instant::now(), None, Movement::begin());
    while !movement.stands_still(STANDSTILL) {
        sleep(CYCLE).await;
        let Some(look) = backlog.latest().filter(|look| look.at > called) else { continue };
        if look.committed >= *end.get_or_insert(look.written) {
            return;
        }
        movement.see(look.committed);
    }
}

async fn act(fault: &Fault, process: &Process) -> Result<()> {
    let duration = fault.duration.get();
    match fault.action {
        Action::Restart => process.restart().await?,
        Action::Kill => {
            process.kill().await?;
            sleep(duration).await;
            process.start()?;
            process.ready().await?;
        }
        Action::Pause => {
            process.pause().await?;
            sleep(duration).await;
            process.resume().await?;
        }
        Action::Slow => {
            let (end, stopped) = (Instant::now() + duration, CYCLE.mul_f64(fault.share));
            while Instant::now() < end {
                process.pause().await?;
                sleep(stopped).await;
                process.resume().await?;
                sleep(CYCLE.saturating_sub(stopped)).await;
            }
        }
        // Of links only, which the scenario's check sees to.
        Action::Cut => {}
    }
    Ok(())
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Restart => "restart",
        Action::Kill => "kill",
        Action::Pause => "pause",
        Action::Slow => "slowdown",
        Action::Cut => "cut",
    }
}

fn target(fault: &Fault, pipeline: &Pipeline) -> String {
    let name = match fault.target {
        Target::Ingest => "ingest",
        Target::Processor => "processor",
        Target::Broker => "broker",
        Target::Store => "store",
        Target::Region => "region",
        Target::Mirror => return "the mirror".to_owned(),
        Target::Link => return "the link between the regions".to_owned(),
    };
    let region = pipeline.regions.get(fault.region).and_then(|region| region.name.as_deref());
    region.map_or_else(|| format!("the {name}"), |region| format!("the {name} {region}"))
}
