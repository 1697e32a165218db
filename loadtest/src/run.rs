//! A run from its first process to its summary.
//!
//! ```text
//! scenario ─▶ plan, corpus ─▶ services ─▶ warm-up ─▶ load ∥ faults ∥ timeline ∥ reader ∥ rows ─▶ backlog gone ─▶ audit ─▶ summary
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::audits::{Arrival, Audits};
use crate::backlog::{Backlog, Look, Movement};
use crate::corpus::{Corpus, CorpusSpec};
use crate::generator::{self, Traffic};
use crate::knee::{self, Knee};
use crate::outcome::{self, Outcome, Span};
use crate::pipeline::Pipeline;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::reader::TopicReader;
use crate::recorder::{Kind, Recorder, add, read};
use crate::resources::{Resources, Watched};
use crate::results::write_summary;
use crate::scenario::{Scenario, Subject};
use crate::scrape::Page;
use crate::summary::Summary;
use crate::table::Table;
use crate::timeline::{self, Sources, Timeline};
use crate::{faults, rows, start};

/// What a load that was interrupted has left to hear its last answers.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two looks at how far something is.
const LOOK: Duration = Duration::from_millis(100);

/// A run that is about to begin.
pub struct Run<'a> {
    /// The scenario's name.
    pub name: &'a str,
    /// The scenario.
    pub scenario: &'a Scenario,
    /// What is loaded.
    pub pipeline: &'a Pipeline,
    /// What the machine can do, by name; every rate of the run is held against it.
    pub limits: &'a BTreeMap<String, f64>,
    /// Folder for everything the run leaves.
    pub out: &'a Path,
    /// Cancelled when the run is to end early.
    pub stop: CancellationToken,
}

/// What all parts of a run share.
pub(crate) struct Parts {
    pub(crate) traffic: Arc<Traffic>,
    /// One for each region.
    pub(crate) backlogs: Vec<Arc<Backlog>>,
    pub(crate) progress: Progress,
    /// When the open loop's time 0 is, once it is known.
    epoch: Arc<OnceLock<std::time::Instant>>,
}

impl Run<'_> {
    /// Does it, and leaves `summary.json`, the `.hlog` files and `timeline.csv`. Needs a multi-threaded Tokio runtime.
    ///
    /// # Errors
    /// When the deployment cannot be reached or a part of it fails for another reason than a fault of the scenario.
    pub async fn execute(&self) -> Result<Summary> {
        std::fs::create_dir_all(self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let summary = match self.scenario.subject {
            Subject::Start => start::measure(self).await?,
            _ => self.load().await?,
        };
        timeline::write_csv(&summary.timeline, self.out)?;
        write_summary(self.out, &summary)?;
        Ok(summary)
    }

    async fn load(&self) -> Result<Summary> {
        let (regions, progress) = (&self.pipeline.regions, Progress::new(self.name));
        ensure!(
            regions.len() == self.scenario.regions,
            "the deployment has {} regions, the scenario {}: see --region",
            regions.len(),
            self.scenario.regions
        );
        progress.step("preparing packets and services");
        let plan = Plan::new(self.scenario);
        let corpus = Arc::new(block_in_place(|| Corpus::new(self.corpus()))?);
        let alone = self.scenario.subject == Subject::Ingest;
        // Only where latency to the topic is measured: elsewhere the reader would take its CPU from what is.
        let at_once = self.scenario.subject == Subject::Pipeline;
        let audit = || {
            let audit = Audit::new(corpus.clone(), plan.packets());
            let audit = if self.pipeline.is_own() { audit.exclusive() } else { audit };
            Arc::new(if alone { audit.without_table() } else { audit })
        };
        let audits = Audits::new(regions.iter().map(|_| audit()).collect(), plan.packets());
        let traffic = Arc::new(Traffic {
            audits: Arc::new(audits),
            corpus,
            recorder: Arc::new(Recorder::new(plan.phases().len())?),
            plan: Arc::new(plan),
            stop: self.stop.child_token(),
        });
        for own in regions.iter().filter_map(|region| region.own.as_ref()) {
            own.ingest.ready().await?;
            if !alone {
                own.processor.ready().await?;
            }
        }
        let watch = regions.iter().map(|region| {
            let endpoints = &region.endpoints;
            Ok(Arc::new(Backlog::watch(&endpoints.kafka, &endpoints.group, &endpoints.sources)?))
        });
        let backlogs = block_in_place(|| watch.collect::<Result<_>>())?;
        let parts = Parts { traffic, backlogs, progress, epoch: Arc::default() };
        let readers = if at_once { block_in_place(|| self.readers(&parts))? } else { Vec::new() };
        let mut outcome = match self.scenario.subject {
            Subject::Processor => self.backlog_first(&parts).await?,
            Subject::Mirror => self.mirror_first(&parts).await?,
            _ => self.under_load(&parts).await?,
        };
        if !self.stop.is_cancelled() {
            self.finish(&parts, readers, &mut outcome).await?;
        }
        outcome.partitions = block_in_place(|| parts.backlogs[0].partitions())?;
        outcome.interrupted = self.stop.is_cancelled();
        outcome::summarize(self, &parts.traffic, outcome)
    }

    fn corpus(&self) -> CorpusSpec {
        let (packets, load) = (&self.scenario.corpus, &self.scenario.load);
        CorpusSpec {
            seed: packets.seed.unwrap_or_else(|| OffsetDateTime::now_utc().unix_timestamp_nanos() as u64),
            size: packets.size.as_usize(),
            largest: packets.largest.map(coderelay_runtime::config::HumanSize::as_usize),
            files: packets.files.clone(),
            repositories: packets.repositories,
            burst: packets.in_a_row.unwrap_or(load.per_request),
            hot: packets.hot,
            ..CorpusSpec::default()
        }
    }

    /// Each region's reader of the deduped topic from now on; once the load is over, of all of it, or for ingest alone of the topic it
    /// writes.
    fn readers(&self, parts: &Parts) -> Result<Vec<TopicReader>> {
        (0..self.pipeline.regions.len()).map(|region| self.reader(parts, region)).collect()
    }

    fn reader(&self, parts: &Parts, region: usize) -> Result<TopicReader> {
        let (traffic, epoch) = (parts.traffic.clone(), parts.epoch.clone());
        let endpoints = &self.pipeline.regions[region].endpoints;
        let on_record = move |n: u64, at: std::time::Instant| {
            let (recorder, plan) = (&traffic.recorder, &traffic.plan);
            if region == 0 {
                add(&recorder.delivered, 1);
            }
            let due = epoch.get().zip(plan.intended(n)).filter(|(_, due)| *due >= plan.measured_from());
            let Some((epoch, due)) = due else { return };
            let (kind, took) = match traffic.audits.arrival(n, region, at) {
                Arrival::Home => (Kind::Topic, at.saturating_duration_since(*epoch + due)),
                Arrival::Mirrored(took) => (Kind::Mirror, took),
            };
            recorder.record(kind, plan.phase_at(due), took, 1);
        };
        let audit = parts.traffic.audits.each()[region].clone();
        let topics = &endpoints.topics;
        match self.scenario.subject {
            Subject::Ingest => TopicReader::start_at_beginning(&endpoints.kafka, &topics.packets, audit, on_record),
            Subject::Processor | Subject::Mirror => {
                TopicReader::start_at_beginning(&endpoints.kafka, &topics.deduped, audit, on_record)
            }
            _ => TopicReader::start(&endpoints.kafka, &topics.deduped, audit, on_record),
        }
    }

    /// The pipeline, or ingest alone, while packets come in.
    async fn under_load(&self, parts: &Parts) -> Result<Outcome> {
        let (plan, endpoints) = (&parts.traffic.plan, self.pipeline.endpoints());
        if !plan.is_open() && !plan.warm_up().is_empty() {
            parts.progress.step("warming up");
            self.generate(parts, plan.warm_up(), Instant::now()).await?;
        }
        let earlier = Page::fetch(&format!("{}/metrics", endpoints.processor_admin)).await.unwrap_or_default();
        let table = match self.scenario.subject {
            // A row of another region's packet would be timed with the mirror's way.
            Subject::Pipeline if plan.is_open() && self.scenario.regions == 1 => {
                Some(Arc::new(Box::pin(Table::connect(&endpoints.cql, &endpoints.keyspace)).await?))
            }
            _ => None,
        };
        let epoch = Instant::now() + LOOK;
        let started = epoch + plan.measured_from();
        // Time 0 is set once.
        let _ = parts.epoch.set(epoch.into_std());
        let timeline = self.timeline(parts, started, plan.end())?;
        let requests = if plan.is_open() { plan.requests() } else { plan.measured() };
        let mut generator = Resources::new(&[Watched::own()]);

        let settled = CancellationToken::new();
        let samples =
            table.map(|table| tokio::spawn(rows::sample(parts.traffic.clone(), table, epoch, settled.clone())));
        let work = async {
            if !plan.is_open() {
                sleep_until(epoch).await;
            }
            let knee = self.knee(parts, epoch, &timeline);
            let (last, knee) = tokio::join!(self.generate(parts, requests, epoch), knee);
            Ok::<_, anyhow::Error>((last?, knee))
        };
        let faults = self.faults(parts, started, &timeline);
        let ((last, knee), exposed) = tokio::try_join!(work, faults)?;
        generator.look();
        let cpu = generator.usage(1).iter().map(|usage| usage.cpu_seconds).sum::<f64>();
        timeline.event("the load ended");

        let ended = Instant::now();
        let drained = self.scenario.subject == Subject::Ingest || self.wait_until_drained(parts).await;
        let converged = (drained && self.scenario.regions > 1).then(|| ended.elapsed());
        settled.cancel();
        let unreadable = match samples {
            Some(samples) if drained && !self.stop.is_cancelled() => Some(samples.await?),
            _ => None,
        };
        let later = Page::fetch(&format!("{}/metrics", endpoints.processor_admin)).await.unwrap_or_default();
        Ok(Outcome {
            load: Span { started, ended: last },
            generator_cores: cpu / last.saturating_duration_since(epoch).as_secs_f64().max(1e-3),
            collected: Some(timeline.finish()?),
            looks: parts.backlogs[0].looks(),
            pages: (earlier, later),
            knee,
            drained,
            exposed,
            converged,
            unreadable,
            ..Outcome::at(started)
        })
    }

    /// The processor on what the load has left.
    async fn backlog_first(&self, parts: &Parts) -> Result<Outcome> {
        let (plan, own) = (&parts.traffic.plan, self.pipeline.own()?);
        if !plan.warm_up().is_empty() {
            parts.progress.step("warming up");
            self.generate(parts, plan.warm_up(), Instant::now()).await?;
            self.wait_until_drained(parts).await;
        }
        own.processor.stop().await?;
        parts.progress.step("building the backlog");
        let began = Instant::now();
        let last = self.generate(parts, plan.measured(), began).await?;
        let load = Span { started: began, ended: last };

        let backlog = &parts.backlogs[0];
        let before = backlog.looks().len();
        let started = Instant::now();
        let timeline = self.timeline(parts, started, Duration::from_secs(60))?;
        timeline.event("the processor starts");
        let drained = !self.stop.is_cancelled() && {
            own.processor.ready().await?;
            self.wait_until_drained(parts).await
        };
        timeline.event("the backlog is gone");
        let page = Page::fetch(&format!("{}/metrics", self.pipeline.endpoints().processor_admin)).await?;
        let looks: Vec<Look> = backlog.looks().split_off(before.saturating_sub(1));
        Ok(Outcome {
            load,
            collected: Some(timeline.finish()?),
            looks,
            pages: (Page::default(), page),
            drained,
            ..Outcome::at(started)
        })
    }

    pub(crate) fn timeline(&self, parts: &Parts, started: Instant, about: Duration) -> Result<Timeline> {
        let watched = self.pipeline.watched.iter().cloned().chain([Watched::own()]).collect();
        let (recorder, backlog) = (parts.traffic.recorder.clone(), parts.backlogs[0].clone());
        recorder.discard();
        let sources = Sources { recorder, backlog, watched, folder: self.out.to_owned() };
        Timeline::start(sources, started.into_std(), timeline::interval(about))
    }

    /// Sends requests of the plan, and tells how far it is.
    pub(crate) async fn generate(
        &self,
        parts: &Parts,
        requests: std::ops::Range<u64>,
        epoch: Instant,
    ) -> Result<Instant> {
        let load = &self.scenario.load;
        let written = if self.scenario.subject == Subject::Mirror { 1 } else { self.pipeline.regions.len() };
        let regions = self.pipeline.regions.iter().take(written);
        let endpoints: Vec<_> = regions.map(|region| region.endpoints.ingest.clone()).collect();
        let recorder = &parts.traffic.recorder;
        let show = async {
            loop {
                sleep(LOOK).await;
                parts.progress.show(|| {
                    let waiting: u64 =
                        parts.backlogs.iter().filter_map(|backlog| Some(backlog.latest()?.waiting())).sum();
                    let acknowledged = read(&recorder.acknowledged_in_all);
                    let (again, failed) = (read(&recorder.retried), read(&recorder.failed));
                    format!(
                        "{acknowledged} acknowledged, {waiting} waiting for the processor, {again} sent again, {failed} failed"
                    )
                });
            }
        };
        let interrupted = async {
            self.stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            last = generator::run(&parts.traffic, &endpoints, load, requests, epoch) => last,
            () = show => Ok(Instant::now()),
            () = interrupted => Ok(Instant::now()),
        }
    }

    async fn knee(&self, parts: &Parts, epoch: Instant, timeline: &Timeline) -> Option<Knee> {
        let ramp = self.scenario.ramp.as_ref()?;
        tokio::select! {
            knee = knee::find(&parts.traffic, ramp, &self.scenario.generator, epoch, timeline) => Some(knee),
            () = self.stop.cancelled() => None,
        }
    }

    async fn faults(&self, parts: &Parts, started: Instant, timeline: &Timeline) -> Result<u64> {
        let faults = &self.scenario.faults;
        if faults.is_empty() || !self.pipeline.is_own() {
            return Ok(0);
        }
        let (audits, backlogs) = (&parts.traffic.audits, &parts.backlogs);
        let inject = faults::inject(faults, self.pipeline, audits, backlogs, started, timeline);
        let lift = async {
            self.stop.cancelled().await;
            faults::lift(faults, self.pipeline).await
        };
        tokio::select! {
            exposed = inject => exposed,
            lifted = lift => lifted.map(|()| 0),
        }
    }

    /// Waits until every region's processor has committed all that is in its topics now, and where several are read meanwhile, until each
    /// has published all that was acknowledged anywhere. Whether it is so; nothing may move for the scenario's patience.
    pub(crate) async fn wait_until_drained(&self, parts: &Parts) -> bool {
        let patience = self.scenario.finish.patience.get();
        let called = std::time::Instant::now();
        let (mut end, mut movement) = (None, Movement::begin());
        while !self.stop.is_cancelled() && !movement.stands_still(patience) {
            sleep(LOOK).await;
            let latest = parts.backlogs.iter().map(|backlog| backlog.latest().filter(|look| look.at > called));
            let Some(looks) = latest.collect::<Option<Vec<Look>>>() else { continue };
            let committed: u64 = looks.iter().map(|look| look.committed).sum();
            let written: u64 = looks.iter().map(|look| look.written).sum();
            // What is mirrored goes on being written.
            let end = if looks.len() == 1 { *end.get_or_insert(written) } else { written };
            let read = looks.len() > 1 && self.scenario.subject == Subject::Pipeline;
            let missing = if read { parts.traffic.audits.unpublished() } else { 0 };
            if committed >= end && missing == 0 {
                return true;
            }
            movement.see(committed);
            parts.progress.show(|| match missing {
                0 => format!("{} waiting for the processor", end - committed),
                _ => format!("{} waiting for the processors, {missing} missing in a region", end - committed),
            });
        }
        false
    }

    /// Reads topics and tables to their ends and has every packet judged.
    async fn finish(&self, parts: &Parts, mut readers: Vec<TopicReader>, outcome: &mut Outcome) -> Result<()> {
        if !self.scenario.finish.audit {
            return Ok(());
        }
        parts.progress.step("reading the topic to its end");
        let patience = self.scenario.finish.patience.get();
        if readers.is_empty() {
            readers = block_in_place(|| self.readers(parts))?;
        }
        let audits = &parts.traffic.audits;
        for (region, (reader, audit)) in self.pipeline.regions.iter().zip(readers.into_iter().zip(audits.each())) {
            block_in_place(|| reader.finish(patience))?;
            if self.scenario.subject != Subject::Ingest {
                let table = Box::pin(Table::connect(&region.endpoints.cql, &region.endpoints.keyspace)).await?;
                table.audit(audit, |rows| parts.progress.show(|| format!("{rows} rows read for the audit"))).await?;
            }
        }
        let names: Vec<_> = self.pipeline.regions.iter().filter_map(|region| region.name.clone()).collect();
        let (audit, each) = audits.finish(&names);
        (outcome.audit, outcome.audits) = (Some(audit), each);
        if self.scenario.finish.replay {
            parts.progress.step("restarting the processor to time the ledger's replay");
            match start::replay(self.pipeline).await {
                Ok(replay) => outcome.replay = Some(replay),
                Err(error) => outcome.notes.push(format!("The ledger's replay was not timed: {error:#}.")),
            }
        }
        Ok(())
    }
}
