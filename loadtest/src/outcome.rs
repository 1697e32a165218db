//! What a run found, made into its summary and judged.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use coderelay_devstack::{CASSANDRA_VERSION, KAFKA_VERSION};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::backlog::{self, Look};
use crate::generator::Traffic;
use crate::knee::Knee;
use crate::machine::Origin;
use crate::mirror::Throughput;
use crate::plan::Phase;
use crate::recorder::{Kind, read};
use crate::run::Run;
use crate::scenario::Subject;
use crate::scrape::Page;
use crate::start::Replay;
use crate::summary::{Audit, Generator, Packets, Rate, SCHEMA, Summary, Verdict};
use crate::threshold::Condition;
use crate::timeline::Collected;

/// The processor's histogram of the time a transaction takes, in seconds.
const COMMIT_METRIC: &str = "coderelay_processor_commit_duration_seconds";
/// The processor's gauge of remembered ids.
const IDS_METRIC: &str = "coderelay_dedup_entries";
/// What holds for every run that is audited, whatever its scenario says.
const AUDITED: [&str; 5] = ["lost == 0", "duplicated == 0", "altered == 0", "reordered == 0", "unsent == 0"];

/// A stretch of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub started: Instant,
    pub ended: Instant,
}

impl Span {
    fn seconds(self) -> f64 {
        self.ended.saturating_duration_since(self.started).as_secs_f64().max(1e-3)
    }
}

/// What a run found, beside what the recorder holds.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When the measured part began.
    pub started: Instant,
    /// When packets were sent and answered.
    pub load: Span,
    /// CPU of the generator during the load.
    pub generator_cores: f64,
    pub collected: Option<Collected>,
    /// The backlog, during the measured part.
    pub looks: Vec<Look>,
    /// The processor's metrics before and after.
    pub pages: (Page, Page),
    pub knee: Option<Knee>,
    /// Whether the processor committed everything in time.
    pub drained: bool,
    /// Rows of the sample that were never found.
    pub unreadable: Option<u64>,
    pub audit: Option<Audit>,
    /// By region, where there are several.
    pub audits: BTreeMap<String, Audit>,
    /// Packets that would have been lost with the regions that were killed, had none come back.
    pub exposed: u64,
    /// From the end of load and faults until all regions had published everything.
    pub converged: Option<Duration>,
    pub replay: Option<Replay>,
    pub mirrored: Option<Throughput>,
    pub partitions: Vec<u64>,
    pub interrupted: bool,
    /// What else is to be said.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Nothing yet.
    pub(crate) fn at(started: Instant) -> Self {
        Self {
            started,
            load: Span { started, ended: started },
            generator_cores: 0.0,
            collected: None,
            looks: Vec::new(),
            pages: (Page::default(), Page::default()),
            knee: None,
            drained: true,
            unreadable: None,
            audit: None,
            audits: BTreeMap::new(),
            exposed: 0,
            converged: None,
            replay: None,
            mirrored: None,
            partitions: Vec::new(),
            interrupted: false,
            notes: Vec::new(),
        }
    }
}

/// A summary that says which run it is of, and nothing of what it found.
pub(crate) fn blank(run: &Run<'_>, started: Instant) -> Result<Summary> {
    let began = OffsetDateTime::now_utc() - started.elapsed();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut versions = BTreeMap::from([("loadtest".to_owned(), version.clone())]);
    if run.pipeline.is_own() {
        versions.extend(["ingest", "processor"].map(|name| (name.to_owned(), version.clone())));
        let servers = [("kafka", KAFKA_VERSION), ("cassandra", CASSANDRA_VERSION)];
        versions.extend(servers.map(|(name, version)| (name.to_owned(), version.to_owned())));
    }
    Ok(Summary {
        schema: SCHEMA,
        scenario: run.name.to_owned(),
        description: run.scenario.description.clone(),
        started: began.format(&Rfc3339)?,
        origin: Origin::here()?,
        versions,
        configuration: json!({ "scenario": run.scenario, "limits": run.limits }),
        ..Summary::default()
    })
}

/// The summary of a run.
pub(crate) fn summarize(run: &Run<'_>, traffic: &Traffic, outcome: Outcome) -> Result<Summary> {
    let (recorder, plan, subject) = (&traffic.recorder, &traffic.plan, run.scenario.subject);
    let drained = backlog::drained(&outcome.looks);
    let committed =
        |looks: &[Look]| looks.last().zip(looks.first()).map_or(0, |(last, first)| last.committed - first.committed);
    let acknowledged = read(&recorder.acknowledged);
    let (records, seconds) = match subject {
        Subject::Processor => (committed(&outcome.looks), drained.map_or(0.0, |(_, seconds)| seconds)),
        _ => (acknowledged, outcome.load.seconds()),
    };
    let mut summary = Summary {
        seconds,
        packets: packets(traffic),
        errors: recorder.errors(),
        generator: generator(run, traffic, &outcome),
        processes: outcome.collected.as_ref().map(|collected| collected.usage(records)).unwrap_or_default(),
        partitions: outcome.partitions,
        audit: outcome.audit,
        audits: outcome.audits,
        notes: outcome.notes,
        ..blank(run, outcome.started)?
    };
    let kinds: &[Kind] = match subject {
        // The load that builds the backlog is no measurement.
        Subject::Processor | Subject::Mirror => &[],
        _ => &[Kind::Ack, Kind::Service, Kind::Topic, Kind::Cql, Kind::Mirror],
    };
    for kind in kinds {
        let percentiles = recorder.total(*kind).percentiles();
        if percentiles.count > 0 {
            summary.latencies.insert(kind.name().to_owned(), percentiles);
        }
    }
    let single = run.scenario.load.per_request == 1;
    let echo = if single { "grpc_echo_single" } else { "grpc_echo" };
    let mut rate =
        |name: &str, per_second: f64, limits: &[&str]| summary.rates.extend(rates(run, name, per_second, limits));
    match subject {
        Subject::Processor => {
            if let Some((records, seconds)) = drained {
                rate("drained", records as f64 / seconds, &["cql_batch", "drain"]);
            }
        }
        Subject::Mirror => {}
        _ => rate("acknowledged", acknowledged as f64 / outcome.load.seconds(), &["produce", echo]),
    }
    if let Some(knee) = &outcome.knee {
        rate("knee", knee.rate, &["cql_batch"]);
        summary.notes.push(format!("Knee: {}.", knee.reason));
    }
    if let Some(Throughput { alone, with_processors }) = outcome.mirrored {
        summary.rates.push(Rate {
            name: "mirrored".to_owned(),
            per_second: with_processors,
            limit: Some("mirrormaker".to_owned()),
            ratio: Some(with_processors / alone),
        });
    }
    let megabytes = acknowledged as f64 * summary.packets.content_bytes as f64 / 1e6;
    summary.figures.insert("mb_per_second".to_owned(), megabytes / outcome.load.seconds());
    processor(&mut summary, &outcome.pages, outcome.replay);
    phases(&mut summary, traffic);
    if let Some(gone) = backlog_gone(plan.phases(), plan.measured_from(), outcome.started, &outcome.looks) {
        summary.figures.insert("backlog_gone_s".to_owned(), gone);
    }
    let gap = recorder.longest_gap().filter(|_| run.scenario.regions > 1);
    let figures = [
        ("unreadable", outcome.unreadable.map(|rows| rows as f64)),
        ("gap_s", gap.map(|gap| gap.as_secs_f64())),
        ("exposed", run.scenario.loses_a_region().then_some(outcome.exposed as f64)),
        ("converged_s", outcome.converged.map(|converged| converged.as_secs_f64())),
    ];
    let measured = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    summary.figures.extend(measured);
    if !outcome.drained && !outcome.interrupted {
        let waiting = outcome.looks.last().map_or(0, Look::waiting);
        summary.notes.push(format!("The processor stood still with {waiting} records waiting."));
    }
    if let Some(collected) = outcome.collected {
        summary.timeline = collected.timeline;
    }
    judge(run, &mut summary, outcome.interrupted);
    Ok(summary)
}

/// Holds the summary against the scenario's thresholds, and says how the run ended.
pub(crate) fn judge(run: &Run<'_>, summary: &mut Summary, interrupted: bool) {
    let audited = AUDITED.iter().copied().filter(|_| summary.audit.is_some());
    let conditions = audited.chain(run.scenario.thresholds.iter().map(String::as_str));
    // They were checked when the scenario was read.
    let conditions = conditions.filter_map(|text| text.parse::<Condition>().ok());
    summary.thresholds = conditions.map(|condition| condition.check(summary)).collect();
    summary.verdict = if interrupted {
        summary.notes.push("Interrupted: this is what was measured so far; nothing was audited.".to_owned());
        Verdict::Interrupted
    } else if summary.generator.behind {
        let Generator { slip_p99_ms, cpu, .. } = summary.generator;
        summary.notes.push(format!(
            "The generator fell behind its plan (slip p99 {slip_p99_ms:.1} ms, {cpu:.2} cores): this is no result."
        ));
        Verdict::Invalid
    } else if summary.thresholds.iter().all(|threshold| threshold.met) {
        Verdict::Passed
    } else {
        Verdict::Missed
    };
}

fn packets(traffic: &Traffic) -> Packets {
    let (recorder, plan) = (&traffic.recorder, &traffic.plan);
    let (content, expanded) = traffic.corpus.mean_bytes();
    Packets {
        planned: (plan.measured().end - plan.measured().start) * plan.per_request(),
        sent: read(&recorder.sent),
        acknowledged: read(&recorder.acknowledged),
        failed: read(&recorder.failed),
        retried: read(&recorder.retried),
        repeats: read(&recorder.repeats),
        warm_up: read(&recorder.warm_up),
        content_bytes: content as u64,
        expanded_bytes: expanded as u64,
    }
}

/// A closed loop has no plan that its generator could fall behind.
fn generator(run: &Run<'_>, traffic: &Traffic, outcome: &Outcome) -> Generator {
    let (slip, bounds) = (traffic.recorder.total(Kind::Slip).percentiles(), &run.scenario.generator);
    let max_slip = bounds.max_slip.get().as_secs_f64() * 1e3;
    // A ramp goes on until something breaks; what counts is whether the knee is the generator's.
    let slipped = outcome.knee.as_ref().map_or(slip.p99 > max_slip, |knee| knee.generator);
    let open = traffic.plan.is_open();
    Generator {
        slip_p99_ms: if open { slip.p99 } else { 0.0 },
        slip_max_ms: if open { slip.max } else { 0.0 },
        cpu: outcome.generator_cores,
        behind: open && (slipped || outcome.generator_cores > bounds.max_cpu),
    }
}

/// The rate, once for each of `limits` that is known; once without, if none is.
fn rates(run: &Run<'_>, name: &str, per_second: f64, limits: &[&str]) -> Vec<Rate> {
    let known = limits.iter().filter_map(|limit| Some((*limit, *run.limits.get(*limit)?)));
    let rates: Vec<_> = known
        .map(|(limit, most)| Rate {
            name: name.to_owned(),
            per_second,
            limit: Some(limit.to_owned()),
            ratio: Some(per_second / most),
        })
        .collect();
    if rates.is_empty() { vec![Rate { name: name.to_owned(), per_second, ..Rate::default() }] } else { rates }
}

fn processor(summary: &mut Summary, (earlier, later): &(Page, Page), replay: Option<Replay>) {
    let mut figure = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            summary.figures.insert(name.to_owned(), value);
        }
    };
    let commits = later.histogram(COMMIT_METRIC).since(&earlier.histogram(COMMIT_METRIC));
    figure("commit_p50_ms", commits.quantile(0.5).map(|seconds| seconds * 1e3));
    figure("commit_p99_ms", commits.quantile(0.99).map(|seconds| seconds * 1e3));
    figure("ids_remembered", later.value(IDS_METRIC));
    if let Some(replay) = replay {
        figure("replay_ids", Some(replay.ids));
        figure("replay_s", Some(replay.seconds));
        figure("replay_ids_per_s", Some(replay.ids / replay.seconds.max(1e-6)));
        figure("replay_ready_s", Some(replay.ready.as_secs_f64()));
    }
}

/// Latencies of each phase, where there are several: `burst.ack.p99_ms`.
fn phases(summary: &mut Summary, traffic: &Traffic) {
    let measured = |phase: &&Phase| phase.start >= traffic.plan.measured_from();
    if traffic.plan.phases().iter().filter(measured).count() < 2 {
        return;
    }
    for (number, phase) in traffic.plan.phases().iter().enumerate() {
        for kind in [Kind::Ack, Kind::Topic] {
            let latency = traffic.recorder.phase(kind, number).map(|latency| latency.percentiles());
            if let Some(latency) = latency.filter(|latency| latency.count > 0) {
                for (which, value) in [("p50", latency.p50), ("p99", latency.p99), ("max", latency.max)] {
                    summary.figures.insert(format!("{}.{}.{which}_ms", phase.name, kind.name()), value);
                }
            }
        }
    }
}

/// Seconds from the end of the fastest phase until what waits is no more than a second of the slowest; `None` if all are alike, or
/// if it never was.
fn backlog_gone(phases: &[Phase], measured_from: Duration, started: Instant, looks: &[Look]) -> Option<f64> {
    let slowest = phases.iter().map(|phase| phase.rate).min_by(f64::total_cmp)?;
    let fastest = phases.iter().max_by(|a, b| a.rate.total_cmp(&b.rate)).filter(|phase| phase.rate > slowest)?;
    let over = started.into_std() + fastest.end.saturating_sub(measured_from);
    let gone = looks.iter().find(|look| look.at >= over && look.waiting() as f64 <= slowest)?;
    Some((gone.at - over).as_secs_f64())
}
