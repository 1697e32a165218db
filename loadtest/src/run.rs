//! A run from its first process to its summary.
//!
//! ```text
//! scenario ─▶ plan, corpus ─▶ services ─▶ warm-up ─▶ load ∥ faults ∥ timeline ∥ reader ∥ rows ─▶ backlog gone ─▶ audit ─▶ summary
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::backlog::{Backlog, Look};
use crate::corpus::{Corpus, CorpusSpec};
use crate::deployment::{Own, Pipeline};
use crate::generator::{self, Traffic};
use crate::knee::{self, Knee};
use crate::outcome::{self, Outcome, Span};
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
struct Parts {
    traffic: Arc<Traffic>,
    backlog: Arc<Backlog>,
    progress: Progress,
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
        let (endpoints, progress) = (&self.pipeline.endpoints, Progress::new(self.name));
        progress.step("preparing packets and services");
        let plan = Plan::new(self.scenario);
        let corpus = Arc::new(block_in_place(|| Corpus::new(self.corpus()))?);
        let alone = self.scenario.subject == Subject::Ingest;
        // Only where latency to the topic is measured: elsewhere the reader would take its CPU from what is.
        let at_once = self.scenario.subject == Subject::Pipeline;
        let audit = Audit::new(corpus.clone(), plan.packets());
        let audit = if self.pipeline.own.is_some() { audit.exclusive() } else { audit };
        let traffic = Arc::new(Traffic {
            corpus,
            recorder: Arc::new(Recorder::new(plan.phases().len())?),
            plan: Arc::new(plan),
            audit: Arc::new(if alone { audit.without_table() } else { audit }),
            stop: self.stop.child_token(),
        });
        if let Some(own) = &self.pipeline.own {
            own.ingest.ready().await?;
            if !alone {
                own.processor.ready().await?;
            }
        }
        let watch = || Backlog::watch(&endpoints.kafka, &endpoints.group, &endpoints.topics.packets);
        let backlog = Arc::new(block_in_place(watch)?);
        let parts = Parts { traffic, backlog, progress, epoch: Arc::default() };
        let reader = if at_once { Some(block_in_place(|| self.reader(&parts))?) } else { None };
        let mut outcome = match self.scenario.subject {
            Subject::Processor => self.backlog_first(&parts).await?,
            _ => self.under_load(&parts).await?,
        };
        if !self.stop.is_cancelled() {
            self.finish(&parts, reader, &mut outcome).await?;
        }
        outcome.partitions = block_in_place(|| parts.backlog.partitions())?;
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

    /// A reader of the deduped topic from now on; once the load is over, of all of it, or for ingest alone of the topic it writes.
    fn reader(&self, parts: &Parts) -> Result<TopicReader> {
        let (traffic, epoch, endpoints) = (parts.traffic.clone(), parts.epoch.clone(), &self.pipeline.endpoints);
        let on_record = move |n: u64, at: std::time::Instant| {
            add(&traffic.recorder.delivered, 1);
            let due = epoch.get().zip(traffic.plan.intended(n));
            if let Some((epoch, due)) = due.filter(|(_, due)| *due >= traffic.plan.measured_from()) {
                let took = at.saturating_duration_since(*epoch + due);
                traffic.recorder.record(Kind::Topic, traffic.plan.phase_at(due), took, 1);
            }
        };
        let audit = parts.traffic.audit.clone();
        let topics = &endpoints.topics;
        match self.scenario.subject {
            Subject::Ingest => TopicReader::start_at_beginning(&endpoints.kafka, &topics.packets, audit, on_record),
            Subject::Processor => TopicReader::start_at_beginning(&endpoints.kafka, &topics.deduped, audit, on_record),
            _ => TopicReader::start(&endpoints.kafka, &topics.deduped, audit, on_record),
        }
    }

    /// The pipeline, or ingest alone, while packets come in.
    async fn under_load(&self, parts: &Parts) -> Result<Outcome> {
        let (plan, endpoints) = (&parts.traffic.plan, &self.pipeline.endpoints);
        if !plan.is_open() && !plan.warm_up().is_empty() {
            parts.progress.step("warming up");
            self.generate(parts, plan.warm_up(), Instant::now()).await?;
        }
        let earlier = Page::fetch(&format!("{}/metrics", endpoints.processor_admin)).await.unwrap_or_default();
        let table = match self.scenario.subject {
            Subject::Pipeline if plan.is_open() => {
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
        let faults = self.faults(started, &timeline);
        let ((last, knee), ()) = tokio::try_join!(work, faults)?;
        generator.look();
        let cpu = generator.usage(1).iter().map(|usage| usage.cpu_seconds).sum::<f64>();
        timeline.event("the load ended");

        let drained = self.scenario.subject == Subject::Ingest || self.wait_until_drained(parts).await;
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
            looks: parts.backlog.looks(),
            pages: (earlier, later),
            knee,
            drained,
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

        let before = parts.backlog.looks().len();
        let started = Instant::now();
        let timeline = self.timeline(parts, started, Duration::from_secs(60))?;
        timeline.event("the processor starts");
        let drained = !self.stop.is_cancelled() && {
            own.processor.ready().await?;
            self.wait_until_drained(parts).await
        };
        timeline.event("the backlog is gone");
        let page = Page::fetch(&format!("{}/metrics", self.pipeline.endpoints.processor_admin)).await?;
        let looks: Vec<Look> = parts.backlog.looks().split_off(before.saturating_sub(1));
        Ok(Outcome {
            load,
            collected: Some(timeline.finish()?),
            looks,
            pages: (Page::default(), page),
            drained,
            ..Outcome::at(started)
        })
    }

    fn timeline(&self, parts: &Parts, started: Instant, about: Duration) -> Result<Timeline> {
        let watched = self.pipeline.watched.iter().cloned().chain([Watched::own()]).collect();
        let (recorder, backlog) = (parts.traffic.recorder.clone(), parts.backlog.clone());
        recorder.discard();
        let sources = Sources { recorder, backlog, watched, folder: self.out.to_owned() };
        Timeline::start(sources, started.into_std(), timeline::interval(about))
    }

    /// Sends requests of the plan, and tells how far it is.
    async fn generate(&self, parts: &Parts, requests: std::ops::Range<u64>, epoch: Instant) -> Result<Instant> {
        let (load, endpoint) = (&self.scenario.load, &self.pipeline.endpoints.ingest);
        let recorder = &parts.traffic.recorder;
        let show = async {
            loop {
                sleep(LOOK).await;
                parts.progress.show(|| {
                    let waiting = parts.backlog.latest().map_or(0, |look| look.waiting());
                    let (acknowledged, errors) = (read(&recorder.acknowledged_in_all), recorder.errors());
                    let errors: u64 = errors.values().sum();
                    format!(
                        "{acknowledged} acknowledged, {waiting} waiting for the processor, {errors} refused or failed"
                    )
                });
            }
        };
        let interrupted = async {
            self.stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            last = generator::run(&parts.traffic, endpoint, load, requests, epoch) => last,
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

    async fn faults(&self, started: Instant, timeline: &Timeline) -> Result<()> {
        let own: &Own = match &self.pipeline.own {
            Some(own) if !self.scenario.faults.is_empty() => own,
            _ => return Ok(()),
        };
        tokio::select! {
            done = faults::inject(&self.scenario.faults, own, started, timeline) => done,
            () = self.stop.cancelled() => faults::lift(&self.scenario.faults, own).await,
        }
    }

    /// Waits until the processor has committed all that is in the topic now. Whether it did; it may stand still for the scenario's
    /// patience.
    async fn wait_until_drained(&self, parts: &Parts) -> bool {
        let patience = self.scenario.finish.patience.get();
        let called = std::time::Instant::now();
        let (mut end, mut moved) = (None, (Instant::now(), 0));
        while !self.stop.is_cancelled() && moved.0.elapsed() < patience {
            sleep(LOOK).await;
            let Some(look) = parts.backlog.latest().filter(|look| look.at > called) else { continue };
            let end = *end.get_or_insert(look.written);
            if look.committed >= end {
                return true;
            }
            if look.committed > moved.1 {
                moved = (Instant::now(), look.committed);
            }
            parts.progress.show(|| format!("{} waiting for the processor", end - look.committed));
        }
        false
    }

    /// Reads topic and table to their ends and has every packet judged.
    async fn finish(&self, parts: &Parts, reader: Option<TopicReader>, outcome: &mut Outcome) -> Result<()> {
        if !self.scenario.finish.audit {
            return Ok(());
        }
        parts.progress.step("reading the topic to its end");
        let patience = self.scenario.finish.patience.get();
        let reader = reader.map_or_else(|| block_in_place(|| self.reader(parts)), Ok)?;
        block_in_place(|| reader.finish(patience))?;
        let (audit, endpoints) = (&parts.traffic.audit, &self.pipeline.endpoints);
        if self.scenario.subject != Subject::Ingest {
            let table = Box::pin(Table::connect(&endpoints.cql, &endpoints.keyspace)).await?;
            table.audit(audit, |rows| parts.progress.show(|| format!("{rows} rows read for the audit"))).await?;
        }
        outcome.audit = Some(audit.finish());
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
