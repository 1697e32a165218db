//! What is done to the parts while they work: killed, restarted, paused, slowed down.

use std::time::Duration;

use anyhow::{Context, Result};
use coderelay_devstack::Process;
use tokio::time::{Instant, sleep, sleep_until};

use crate::deployment::Own;
use crate::scenario::{Action, Fault, Target};
use crate::timeline::Timeline;

/// A slowed process is stopped once in this.
const CYCLE: Duration = Duration::from_millis(100);

/// Does what the scenario says, each fault at its time since `started`.
///
/// # Errors
/// When a process cannot be signalled or does not come back.
pub async fn inject(faults: &[Fault], own: &Own, started: Instant, timeline: &Timeline) -> Result<()> {
    let mut faults = faults.to_vec();
    faults.sort_by_key(|fault| fault.at.get());
    for fault in &faults {
        sleep_until(started + fault.at.get()).await;
        timeline.event(&format!("{} of the {}", name(fault.action), target(fault.target)));
        let done = inflict(fault, own).await;
        done.with_context(|| format!("{} of the {} failed", name(fault.action), target(fault.target)))?;
        timeline.event(&format!("{} is back", target(fault.target)));
    }
    Ok(())
}

/// Lets every process that was stopped for a fault go on, where the run is ended in the middle of one.
///
/// # Errors
/// When a process cannot be signalled.
pub async fn lift(faults: &[Fault], own: &Own) -> Result<()> {
    for fault in faults.iter().filter(|fault| matches!(fault.action, Action::Pause | Action::Slow)) {
        match fault.target {
            Target::Ingest => resume(own.ingest.process().as_deref()).await?,
            Target::Processor => resume(own.processor.process().as_deref()).await?,
            Target::Broker => resume(Some(own.stack.broker(0))).await?,
            Target::Store => resume(Some(own.stack.cql())).await?,
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

async fn inflict(fault: &Fault, own: &Own) -> Result<()> {
    match fault.target {
        Target::Ingest => act(fault, &*own.ingest.start()?).await,
        Target::Processor => act(fault, &*own.processor.start()?).await,
        Target::Broker => act(fault, own.stack.broker(0)).await,
        Target::Store => act(fault, own.stack.cql()).await,
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
    }
    Ok(())
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Restart => "restart",
        Action::Kill => "kill",
        Action::Pause => "pause",
        Action::Slow => "slowdown",
    }
}

fn target(target: Target) -> &'static str {
    match target {
        Target::Ingest => "ingest",
        Target::Processor => "processor",
        Target::Broker => "broker",
        Target::Store => "store",
    }
}
