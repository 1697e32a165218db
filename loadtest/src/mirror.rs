//! How much the mirror carries from the first region to the second: alone, and while both regions' processors work.
//!
//! Packets are written while the link is cut, so that the mirror has a backlog and nobody waits for the generator.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::backlog::{self, Look};
use crate::outcome::{Outcome, Span};
use crate::run::{Parts, Run};
use crate::scrape::Page;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Records a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    /// With no processor running.
    pub alone: f64,
    /// With both.
    pub with_processors: f64,
}

impl Run<'_> {
    /// Half of the warm-up warms the mirror's JVM, the other half is what it carries alone; the measured part it carries while both
    /// processors work.
    pub(crate) async fn mirror_first(&self, parts: &Parts) -> Result<Outcome> {
        let plan = &parts.traffic.plan;
        let (warm_up, measured) = (plan.warm_up(), plan.measured());
        let half = warm_up.start + (warm_up.end - warm_up.start) / 2;
        ensure!(half > warm_up.start, "subject = \"mirror\" needs load.warm_up_packets");
        for region in &self.pipeline.regions {
            region.own.as_ref().context("subject")?.processor.stop().await?;
        }
        self.carry_over(parts, warm_up.start..half).await?;
        let alone = self.carry_over(parts, half..warm_up.end).await?;
        for region in &self.pipeline.regions {
            region.own.as_ref().context("subject")?.processor.ready().await?;
        }
        self.wait_until_drained(parts).await;

        let started = Instant::now();
        let timeline = self.timeline(parts, started, Duration::from_secs(60))?;
        let with_processors = self.carry_over(parts, measured).await?;
        let load = Span { started, ended: Instant::now() };
        timeline.event("everything is mirrored");
        let drained = self.wait_until_drained(parts).await;
        let page = Page::fetch(&format!("{}/metrics", self.pipeline.endpoints().processor_admin)).await?;
        Ok(Outcome {
            load,
            collected: Some(timeline.finish()?),
            looks: parts.backlogs[1].looks(),
            pages: (Page::default(), page),
            mirrored: Some(Throughput { alone, with_processors }),
            drained,
            ..Outcome::at(started)
        })
    }

    /// Writes requests of the plan to the first region while the link is cut, heals it, and returns how many packets a second arrive.
    async fn carry_over(&self, parts: &Parts, requests: Range<u64>) -> Result<f64> {
        let regions = self.pipeline.own()?.servers.regions().context("there is no mirror")?;
        let packets = (requests.end - requests.start) * parts.traffic.plan.per_request();
        parts.progress.step("building the mirror's backlog");
        let backlog = &parts.backlogs[1];
        let before = backlog.latest().context("the second region has not been looked at")?;
        regions.cut();
        self.generate(parts, requests, Instant::now()).await?;
        regions.heal();
        parts.progress.step("mirroring it");
        let (healed, patience) = (Instant::now(), self.scenario.finish.patience.get());
        loop {
            let arrived = backlog.latest().map_or(0, |look| look.written - before.written);
            if arrived >= packets {
                break;
            }
            ensure!(healed.elapsed() < patience, "{arrived} of {packets} packets were mirrored in {patience:?}");
            sleep(LOOK).await;
        }
        let looks = backlog.looks().into_iter().filter(|look| look.at >= before.at);
        let arrivals: Vec<_> = looks.map(|look| Look { committed: look.written, ..look }).collect();
        let (records, seconds) = backlog::drained(&arrivals).context("too few packets to time")?;
        Ok(records as f64 / seconds)
    }
}
