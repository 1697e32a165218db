//! Several generator processes, one run: what each measured becomes the result of all.
//!
//! Counts are added, interval logs too, bucket by bucket, so the percentiles are those of all packets and no mean of means. What
//! every process saw of the shared services, such as their memory, is not added.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::results::{Interval, Results, SUMMARY, began, percentiles, total};
use crate::summary::{Audit, Event, Generator, Packets, Rate, Series, Summary, Timeline, Usage, Verdict};
use crate::threshold::Condition;
use crate::timeline;

/// The one setting in which the processes of a run differ.
const SEED: &str = "seed";
/// The generator, as it calls itself among the processes.
const GENERATOR: &str = "loadtest";

/// Make one result of those of several generator processes.
///
/// They must have run the same scenario with the same configuration, apart from its seed, at the same time.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The folder to make.
    out: PathBuf,
    /// The processes' folders.
    #[arg(required = true, num_args = 2..)]
    parts: Vec<PathBuf>,
}

impl MergeArgs {
    /// Merges, and writes the result.
    ///
    /// # Errors
    /// As [`merge`]; and when a folder cannot be read, or `out` holds a run already.
    pub fn run(self) -> Result<()> {
        ensure!(!self.out.join(SUMMARY).exists(), "{} holds a run already", self.out.display());
        let parts: Vec<_> = self.parts.iter().map(|part| Results::read(part)).collect::<Result<_>>()?;
        let merged = merge(&parts)?;
        merged.write(&self.out)?;
        timeline::write_csv(&merged.summary.timeline, &self.out)?;
        println!("{}", self.out.join(SUMMARY).display());
        Ok(())
    }
}

/// Merges the results of the processes of one run.
///
/// # Errors
/// When they are not of one run: another scenario, configuration, version or interval, or not at the same time.
pub fn merge(parts: &[Results]) -> Result<Results> {
    let Some((first, rest)) = parts.split_first() else { bail!("nothing to merge") };
    for other in rest {
        same_run(first, other)?;
    }
    let earliest = parts.iter().filter_map(|part| began(&part.summary)).fold(f64::INFINITY, f64::min);
    let shift = |part: &Results| began(&part.summary).map_or(0.0, |began| began - earliest);
    let parts: Vec<_> = parts.iter().map(|part| (shift(part), part)).collect();
    let seconds = parts.iter().map(|(shift, part)| shift + part.summary.seconds).fold(0.0, f64::max);
    for (shift, part) in &parts {
        ensure!(
            *shift < seconds / 2.0 || *shift == 0.0,
            "{} began {shift:.0} s later than the first: not one run",
            part.name
        );
    }

    let interval = first.summary.timeline.interval;
    let latencies = intervals(&parts, if interval > 0.0 { interval } else { 1.0 })?;
    let summaries: Vec<_> = parts.iter().map(|(_, part)| &part.summary).collect();
    let totals = latencies.iter().filter_map(|(name, intervals)| Some((name.clone(), percentiles(&total(intervals)?))));
    let mut summary = Summary {
        seconds,
        started: parts
            .iter()
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, part)| part.summary.started.clone()),
        verdict: worst(&summaries),
        notes: notes(&summaries),
        packets: packets(&summaries),
        errors: sums(
            summaries.iter().flat_map(|summary| &summary.errors).map(|(reason, count)| (reason.clone(), *count)),
        ),
        rates: rates(&summaries, seconds),
        latencies: totals.collect(),
        generator: generator(&summaries),
        timeline: timeline(&parts, interval, &latencies),
        partitions: partitions(&summaries),
        processes: processes(&summaries),
        audit: audit(&summaries),
        figures: figures(&summaries),
        ..first.summary.clone()
    };
    // The merged run is judged as a whole: a threshold that each process meets can be missed by all together, and the reverse.
    let conditions = first.summary.thresholds.iter().map(|threshold| threshold.condition.parse::<Condition>());
    let conditions: Vec<_> = conditions.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    summary.thresholds = conditions.iter().map(|condition| condition.check(&summary)).collect();
    if matches!(summary.verdict, Verdict::Passed | Verdict::Missed) {
        let met = summary.thresholds.iter().all(|threshold| threshold.met);
        summary.verdict = if met { Verdict::Passed } else { Verdict::Missed };
    }
    Ok(Results { name: first.name.clone(), summary, latencies })
}

fn same_run(a: &Results, b: &Results) -> Result<()> {
    let (first, other) = (&a.summary, &b.summary);
    let differ =
        |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| format!("{what} differs: {a:?} and {b:?}");
    let difference = if first.scenario != other.scenario {
        differ("the scenario", &first.scenario, &other.scenario)
    } else if seedless(&first.configuration) != seedless(&other.configuration) {
        "the configuration differs; `loadtest compare` says where".to_owned()
    } else if first.versions != other.versions {
        differ("a version", &first.versions, &other.versions)
    } else if (first.timeline.interval - other.timeline.interval).abs() > f64::EPSILON {
        differ("the timeline's interval", &first.timeline.interval, &other.timeline.interval)
    } else {
        return Ok(());
    };
    bail!("{} and {} are not of one run: {difference}", a.name, b.name)
}

fn seedless(configuration: &Value) -> Value {
    match configuration {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| *name != SEED);
            kept.map(|(name, value)| (name.clone(), seedless(value))).collect()
        }
        other => other.clone(),
    }
}

/// Interval logs by time: what belongs to the same interval is one histogram.
fn intervals(parts: &[(f64, &Results)], length: f64) -> Result<BTreeMap<String, Vec<Interval>>> {
    let mut merged: BTreeMap<String, BTreeMap<u64, Interval>> = BTreeMap::new();
    for (shift, part) in parts {
        for (name, intervals) in &part.latencies {
            for interval in intervals {
                let slot = ((interval.start + shift) / length).round().max(0.0) as u64;
                let slots = merged.entry(name.clone()).or_default();
                if let Some(sum) = slots.get_mut(&slot) {
                    sum.histogram.auto(true);
                    sum.histogram.add(&interval.histogram)?;
                    sum.seconds = sum.seconds.max(interval.seconds);
                } else {
                    slots.insert(slot, Interval { start: slot as f64 * length, ..interval.clone() });
                }
            }
        }
    }
    Ok(merged.into_iter().map(|(name, slots)| (name, slots.into_values().collect())).collect())
}

/// Series by time. Latencies are read from the merged logs.
fn timeline(parts: &[(f64, &Results)], interval: f64, latencies: &BTreeMap<String, Vec<Interval>>) -> Timeline {
    let samples = |shift: f64| if interval > 0.0 { (shift / interval).round() as usize } else { 0 };
    let all = || {
        parts
            .iter()
            .flat_map(|(shift, part)| part.summary.timeline.series.iter().map(|series| (samples(*shift), series)))
    };
    let mut series: Vec<Series> = Vec::new();
    for (offset, part) in all() {
        let same = |other: &&mut Series| other.chart == part.chart && other.name == part.name;
        let Some(sum) = series.iter_mut().find(same) else {
            let values = std::iter::repeat_n(None, offset).chain(part.values.iter().copied()).collect();
            series.push(Series { values, ..part.clone() });
            continue;
        };
        sum.values.resize(sum.values.len().max(offset + part.values.len()), None);
        for (sum, value) in sum.values[offset..].iter_mut().zip(&part.values) {
            *sum = match (*sum, *value) {
                (Some(a), Some(b)) => Some(if own(part) { a + b } else { a.max(b) }),
                (a, b) => a.or(b),
            };
        }
    }
    let longest = series.iter().map(|series| series.values.len()).max().unwrap_or_default();
    for series in &mut series {
        series.values.resize(longest, None);
        if series.chart == "latency" {
            series.values = latency(&series.name, latencies, interval, longest);
        }
    }
    let moved = |shift: f64, event: &Event| Event { at: event.at + shift, what: event.what.clone() };
    let mut events: Vec<_> = parts
        .iter()
        .flat_map(|(shift, part)| part.summary.timeline.events.iter().map(|event| moved(*shift, event)))
        .collect();
    events.sort_by(|a, b| a.what.cmp(&b.what).then(a.at.total_cmp(&b.at)));
    events.dedup_by(|b, a| a.what == b.what && b.at - a.at < interval.max(1.0));
    events.sort_by(|a, b| a.at.total_cmp(&b.at));
    Timeline { interval, series, events }
}

/// Whether a series is the process' own part of the whole, and not what all processes see of the same thing.
fn own(series: &Series) -> bool {
    ["throughput", "errors"].contains(&series.chart.as_str())
        || series.name == GENERATOR
        || (series.chart == "backlog" && series.name.starts_with("acknowledged"))
}

/// A series such as `ack p99`, from the merged log.
fn latency(name: &str, latencies: &BTreeMap<String, Vec<Interval>>, interval: f64, length: usize) -> Vec<Option<f64>> {
    let mut values = vec![None; length];
    let Some((name, percentile)) = name.rsplit_once(' ') else { return values };
    let digits = percentile.trim_start_matches('p');
    let quantile = digits.parse::<f64>().map(|number| number / 10f64.powi(digits.len() as i32));
    let (Some(intervals), Ok(quantile)) = (latencies.get(name), quantile) else { return values };
    for entry in intervals.iter().filter(|entry| !entry.histogram.is_empty()) {
        if let Some(value) = values.get_mut((entry.start / interval).round() as usize) {
            *value = Some(entry.histogram.value_at_quantile(quantile) as f64 / 1e3);
        }
    }
    values
}

fn worst(summaries: &[&Summary]) -> Verdict {
    let ended = |verdict| summaries.iter().any(|summary| summary.verdict == verdict);
    [Verdict::Invalid, Verdict::Interrupted].into_iter().find(|verdict| ended(*verdict)).unwrap_or_default()
}

fn notes(summaries: &[&Summary]) -> Vec<String> {
    let all: BTreeSet<_> = summaries.iter().flat_map(|summary| summary.notes.iter().cloned()).collect();
    let mut notes: Vec<_> = all.into_iter().collect();
    notes.push(format!("Merged from {} generator processes.", summaries.len()));
    let audited = summaries.iter().filter(|summary| summary.audit.is_some()).count();
    if audited != 0 && audited != summaries.len() {
        notes.push(format!("Only {audited} of them were audited, so the whole is not."));
    }
    notes
}

fn packets(summaries: &[&Summary]) -> Packets {
    let sum = |count: fn(&Packets) -> u64| summaries.iter().map(|summary| count(&summary.packets)).sum::<u64>();
    let sent = sum(|packets| packets.sent);
    let mean = |total: u64| total.checked_div(sent).unwrap_or_default();
    Packets {
        planned: sum(|packets| packets.planned),
        sent,
        acknowledged: sum(|packets| packets.acknowledged),
        failed: sum(|packets| packets.failed),
        retried: sum(|packets| packets.retried),
        repeats: sum(|packets| packets.repeats),
        warm_up: sum(|packets| packets.warm_up),
        content_bytes: mean(sum(|packets| packets.content_bytes * packets.sent)),
        expanded_bytes: mean(sum(|packets| packets.expanded_bytes * packets.sent)),
    }
}

fn sums<K: Ord>(counts: impl Iterator<Item = (K, u64)>) -> BTreeMap<K, u64> {
    counts.fold(BTreeMap::new(), |mut sums, (key, count)| {
        *sums.entry(key).or_default() += count;
        sums
    })
}

/// Rates over the whole length, so that they stay counts by time; the limit is the mean of what the processes measured.
fn rates(summaries: &[&Summary], seconds: f64) -> Vec<Rate> {
    let merged = |rate: &Rate| {
        let same = |other: &&Rate| other.name == rate.name && other.limit == rate.limit;
        let parts = || summaries.iter().filter_map(|summary| Some((summary.seconds, summary.rates.iter().find(same)?)));
        let counted: f64 = parts().map(|(seconds, rate)| rate.per_second * seconds).sum();
        let per_second = if seconds > 0.0 { counted / seconds } else { 0.0 };
        let limits: Vec<_> =
            parts().filter_map(|(_, rate)| Some(rate.per_second / rate.ratio.filter(|r| *r > 0.0)?)).collect();
        let ratio = (!limits.is_empty()).then(|| per_second * limits.len() as f64 / limits.iter().sum::<f64>());
        Rate { per_second, ratio, ..rate.clone() }
    };
    summaries[0].rates.iter().map(merged).collect()
}

fn generator(summaries: &[&Summary]) -> Generator {
    let most = |of: fn(&Generator) -> f64| summaries.iter().map(|summary| of(&summary.generator)).fold(0.0, f64::max);
    Generator {
        slip_p99_ms: most(|generator| generator.slip_p99_ms),
        slip_max_ms: most(|generator| generator.slip_max_ms),
        cpu: most(|generator| generator.cpu),
        behind: summaries.iter().any(|summary| summary.generator.behind),
    }
}

/// Every process sees the whole topic, the last to look the most of it.
fn partitions(summaries: &[&Summary]) -> Vec<u64> {
    let most = |at| summaries.iter().filter_map(|summary| summary.partitions.get(at)).max().copied();
    (0..).map_while(most).collect()
}

/// The generators are added; of a service, which all saw, the most that was seen counts, over the packets of all.
fn processes(summaries: &[&Summary]) -> Vec<Usage> {
    let names: Vec<_> = summaries.iter().flat_map(|summary| &summary.processes).map(|usage| &usage.name).collect();
    let mut seen = BTreeSet::new();
    let merged = |name: &String| {
        let all = || summaries.iter().filter_map(|summary| summary.processes.iter().find(|usage| usage.name == *name));
        let (cpu_seconds, peak_rss_bytes) = if name == GENERATOR {
            (all().map(|usage| usage.cpu_seconds).sum(), all().map(|usage| usage.peak_rss_bytes).sum())
        } else {
            let cpu = all().map(|usage| usage.cpu_seconds).fold(0.0, f64::max);
            (cpu, all().map(|usage| usage.peak_rss_bytes).max().unwrap_or_default())
        };
        let each = all().filter(|usage| usage.cpu_seconds_per_100k > 0.0);
        let packets: f64 = each.map(|usage| usage.cpu_seconds / usage.cpu_seconds_per_100k).sum();
        let cpu_seconds_per_100k = if packets > 0.0 { cpu_seconds / packets } else { 0.0 };
        Usage { name: name.clone(), cpu_seconds, cpu_seconds_per_100k, peak_rss_bytes }
    };
    names.into_iter().filter(|name| seen.insert(name.as_str())).map(merged).collect()
}

/// The audits together; none if one process was not audited.
fn audit(summaries: &[&Summary]) -> Option<Audit> {
    let audits: Vec<_> = summaries.iter().map(|summary| summary.audit.as_ref()).collect::<Option<_>>()?;
    let sum = |count: fn(&Audit) -> u64| audits.iter().map(|audit| count(audit)).sum();
    Some(Audit {
        acknowledged: sum(|audit| audit.acknowledged),
        lost: sum(|audit| audit.lost),
        duplicated: sum(|audit| audit.duplicated),
        altered: sum(|audit| audit.altered),
        reordered: sum(|audit| audit.reordered),
        unsent: sum(|audit| audit.unsent),
        unacknowledged: sum(|audit| audit.unacknowledged),
        bytes_per_packet: audits.iter().map(|audit| audit.bytes_per_packet).max().unwrap_or_default(),
        findings: audits.iter().flat_map(|audit| audit.findings.iter().cloned()).collect(),
    })
}

/// Of a time (`_ms`, `_s`) the longest, which the whole does not exceed; anything else only if all agree: it cannot be added.
fn figures(summaries: &[&Summary]) -> BTreeMap<String, f64> {
    let merged = |name: &String| {
        let values: Vec<_> =
            summaries.iter().map(|summary| summary.figures.get(name).copied()).collect::<Option<_>>()?;
        let longest = values.iter().copied().fold(f64::MIN, f64::max);
        let time = name.ends_with("_ms") || name.ends_with("_s");
        (time || values.iter().all(|value| value.total_cmp(&longest).is_eq())).then(|| (name.clone(), longest))
    };
    summaries[0].figures.keys().filter_map(merged).collect()
}
