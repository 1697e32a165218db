//! The knee of a ramp: the last rate that the pipeline held.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::generator::Traffic;
use crate::recorder::{Kind, read};
use crate::scenario::{Generator, Ramp};
use crate::timeline::Timeline;

/// What is still on its way when a step ends has this long to arrive before the step is judged.
const GRACE: Duration = Duration::from_millis(500);

/// Where a ramp broke.
#[derive(Clone, Debug, PartialEq)]
pub struct Knee {
    /// The last rate that was held, in packets a second; 0 if not even the first was.
    pub rate: f64,
    /// What broke at which rate.
    pub reason: String,
    /// Whether it was the generator.
    pub generator: bool,
}

/// Judges each step at its end and stops the load at the first that broke.
pub async fn find(traffic: &Traffic, ramp: &Ramp, bounds: &Generator, epoch: Instant, timeline: &Timeline) -> Knee {
    let mut held = 0.0;
    let first = traffic.plan.phases().iter().position(|phase| phase.start >= traffic.plan.measured_from()).unwrap_or(0);
    for (number, phase) in traffic.plan.phases().iter().enumerate().skip(first) {
        timeline.event(&format!("{}/s", phase.rate));
        sleep_until(epoch + phase.end + GRACE).await;
        let p99 = |kind| {
            let latency = traffic.recorder.phase(kind, number).map(|latency| latency.percentiles().p99);
            Duration::from_secs_f64(latency.unwrap_or_default() / 1e3)
        };
        let (slip, latency) = (p99(Kind::Slip), p99(Kind::Topic));
        let acknowledged = read(&traffic.recorder.acknowledged_in_all);
        let behind = acknowledged.saturating_sub(read(&traffic.recorder.delivered));
        let planned = phase.requests.end * traffic.plan.per_request();
        let unsent = planned.saturating_sub(acknowledged);
        let most = (phase.rate * ramp.backlog.get().as_secs_f64()) as u64;
        let broken = if slip > bounds.max_slip.get() {
            Some(format!("the generator fell behind (p99 {} ms)", slip.as_millis()))
        } else if latency > ramp.latency.get() {
            Some(format!("latency to the topic rose (p99 {} ms)", latency.as_millis()))
        } else if behind > most {
            Some(format!("{behind} packets were acknowledged and not published"))
        } else if unsent > most {
            Some(format!("{unsent} packets were not acknowledged"))
        } else {
            None
        };
        if let Some(broken) = broken {
            traffic.stop.cancel();
            let reason = format!("at {}/s {broken}", phase.rate);
            timeline.event(&reason);
            return Knee { rate: held, reason, generator: slip > bounds.max_slip.get() };
        }
        held = phase.rate;
    }
    Knee { rate: held, reason: "the ramp ended before the knee".to_owned(), generator: false }
}
