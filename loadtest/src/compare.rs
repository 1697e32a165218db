//! What differs between two runs, or two folders of runs, and whether it is more than noise.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::noise::{self, RELEVANCE, SIGNIFICANCE};
use crate::results::Results;
use crate::summary::{Audit, Series, Summary};

/// Say what differs between two runs, and whether it is more than noise.
///
/// Latencies, throughput, backlog, CPU and memory are held against each other interval by interval, in batches: they differ if a
/// Mann–Whitney U test gives p < 0.01 and the medians are at least 5 % apart. What was measured once in a run is said to be so.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The run before: a folder with a summary.json, or a folder of such folders.
    a: PathBuf,
    /// The run after: the same kind of folder.
    b: PathBuf,
}

impl CompareArgs {
    /// Compares them.
    ///
    /// # Errors
    /// When one cannot be read, or they have no scenario in common.
    pub fn run(self) -> Result<Comparison> {
        let (before, after) = (Results::read_all(&self.a)?, Results::read_all(&self.b)?);
        if let ([before], [after]) = (&before[..], &after[..]) {
            return Ok(Comparison { runs: vec![Pair::new(before, after)], only_in_one: Vec::new() });
        }
        let partner = |run: &Results, others: &[Results]| {
            others
                .iter()
                .find(|other| other.summary.scenario == run.summary.scenario && other.name == run.name)
                .cloned()
        };
        let runs: Vec<_> =
            before.iter().filter_map(|run| partner(run, &after).map(|other| Pair::new(run, &other))).collect();
        if runs.is_empty() {
            bail!("{} and {} have no scenario in common", self.a.display(), self.b.display());
        }
        let alone = before.iter().filter(|run| partner(run, &after).is_none());
        let alone = alone.chain(after.iter().filter(|run| partner(run, &before).is_none()));
        Ok(Comparison { runs, only_in_one: alone.map(|run| run.name.clone()).collect() })
    }
}

/// What two runs, or two folders of runs, have different.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Each run that both have.
    pub runs: Vec<Pair>,
    /// Runs that only one has.
    pub only_in_one: Vec<String>,
}

/// A run before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The run's name.
    pub name: String,
    /// What was not the same to begin with: machine, commit, versions, configuration; before and after.
    pub conditions: BTreeMap<String, [String; 2]>,
    /// Every figure that both runs have.
    pub figures: Vec<Difference>,
}

/// A figure before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its name and unit.
    pub figure: String,
    /// Before: the median of the intervals, or the only sample.
    pub a: f64,
    /// After.
    pub b: f64,
    /// `(b - a) / a`; `None` where `a` is zero and `b` is not.
    pub change: Option<f64>,
    /// How likely chance alone is to set them this far apart; `None` for a single sample.
    pub p: Option<f64>,
    /// What to make of it.
    pub judgement: Judgement,
}

/// What to make of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// More than noise, to the better.
    Better,
    /// More than noise, to the worse.
    Worse,
    /// No more than noise.
    Noise,
    /// Counted exactly, and different.
    Counted,
    /// One sample, or too few: it cannot be told from noise.
    SingleSample,
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
}

impl Pair {
    /// Holds two runs against each other.
    pub fn new(before: &Results, after: &Results) -> Self {
        let (a, b) = (&before.summary, &after.summary);
        let mut figures = Vec::new();
        latencies(before, after, &mut figures);
        series(a, b, &mut figures);
        cpu(a, b, &mut figures);
        singles(a, b, &mut figures);
        Self { name: before.name.clone(), conditions: conditions(a, b), figures }
    }
}

/// Median and 99th percentile of each interval.
fn latencies(before: &Results, after: &Results, figures: &mut Vec<Difference>) {
    for (name, a) in &before.latencies {
        let Some(b) = after.latencies.get(name) else { continue };
        for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
            let [a, b] = [a, b].map(|intervals| {
                let counted = intervals.iter().filter(|interval| !interval.histogram.is_empty());
                counted.map(|interval| interval.histogram.value_at_quantile(quantile) as f64 / 1e3).collect::<Vec<_>>()
            });
            figures.extend(sampled(format!("{name} {label}, ms"), &a, &b, Better::Lower));
        }
    }
}

/// The curves over time, apart from the latencies, which the interval logs have in full, and from errors, which are counts.
fn series(a: &Summary, b: &Summary, figures: &mut Vec<Difference>) {
    for before in &a.timeline.series {
        let better = match before.chart.as_str() {
            "throughput" => Better::Higher,
            "backlog" | "cpu" | "rss" | "files" | "threads" => Better::Lower,
            _ => continue,
        };
        let Some(after) = curve(b, &before.chart, &before.name) else { continue };
        let name = format!("{} {}, {}", before.chart, before.name, before.unit);
        figures.extend(sampled(name, &present(before), &present(after), better));
    }
}

/// CPU of each process for every 100,000 packets, interval by interval.
fn cpu(a: &Summary, b: &Summary, figures: &mut Vec<Difference>) {
    let per_100k = |summary: &Summary, process: &str| {
        let packets = curve(summary, "throughput", &summary.rates.first()?.name)?;
        let busy = packets.values.iter().flatten().copied().fold(0.0, f64::max) / 10.0;
        let both = curve(summary, "cpu", process)?.values.iter().zip(&packets.values);
        let values = both.filter_map(|(cores, packets)| Some((*cores, packets.filter(|packets| *packets > busy)?)));
        Some(values.filter_map(|(cores, packets)| Some(cores? / packets * 1e5)).collect::<Vec<_>>())
    };
    for before in &a.processes {
        let Some(after) = b.processes.iter().find(|after| after.name == before.name) else { continue };
        let name = format!("{} CPU-s per 100,000", before.name);
        let intervals = per_100k(a, &before.name).zip(per_100k(b, &before.name));
        let tested = intervals.and_then(|(a, b)| sampled(name.clone(), &a, &b, Better::Lower));
        let tested = tested.filter(|figure| figure.p.is_some());
        figures.push(tested.unwrap_or_else(|| single(name, before.cpu_seconds_per_100k, after.cpu_seconds_per_100k)));
    }
}

/// What a run has once: rates and figures without a curve, and counts.
fn singles(a: &Summary, b: &Summary, figures: &mut Vec<Difference>) {
    for before in a.rates.iter().filter(|rate| curve(a, "throughput", &rate.name).is_none()) {
        if let Some(after) = b.rates.iter().find(|rate| rate.name == before.name) {
            figures.push(single(format!("rate {}, 1/s", before.name), before.per_second, after.per_second));
        }
    }
    for (name, before) in &a.figures {
        figures.extend(b.figures.get(name).map(|after| single(name.clone(), *before, *after)));
    }
    let failed = |summary: &Summary| summary.packets.failed as f64;
    let errors = |summary: &Summary| summary.errors.values().sum::<u64>() as f64;
    figures.push(single("packets failed".to_owned(), failed(a), failed(b)));
    figures.push(single("packets refused or failed, in all".to_owned(), errors(a), errors(b)));
    if let (Some(a), Some(b)) = (&a.audit, &b.audit) {
        let counts = |audit: &Audit| [audit.lost, audit.duplicated, audit.altered, audit.reordered, audit.unsent];
        let kinds = ["lost", "duplicated", "altered", "reordered", "unsent"];
        for (kind, (a, b)) in kinds.into_iter().zip(counts(a).into_iter().zip(counts(b))) {
            let judgement = if a == b { Judgement::Noise } else { Judgement::Counted };
            figures.push(Difference { judgement, ..single(format!("audit {kind}"), a as f64, b as f64) });
        }
    }
}

fn curve<'a>(summary: &'a Summary, chart: &str, name: &str) -> Option<&'a Series> {
    summary.timeline.series.iter().find(|series| series.chart == chart && series.name == name)
}

fn present(series: &Series) -> Vec<f64> {
    series.values.iter().flatten().copied().collect()
}

/// A figure of many samples; `None` where one side has none.
fn sampled(figure: String, a: &[f64], b: &[f64], better: Better) -> Option<Difference> {
    let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
    let Some(test) = noise::test(a, b) else {
        return (!a.is_empty() && !b.is_empty()).then(|| single(figure, mean(a), mean(b)));
    };
    let [before, after] = test.medians;
    let judgement = match (test.differ, after > before) {
        (false, _) => Judgement::Noise,
        (true, higher) if higher == (better == Better::Higher) => Judgement::Better,
        (true, _) => Judgement::Worse,
    };
    Some(Difference { p: Some(test.p), judgement, ..single(figure, before, after) })
}

fn single(figure: String, a: f64, b: f64) -> Difference {
    let change = if a.total_cmp(&b).is_eq() { 0.0 } else { (b - a) / a };
    let change = Some(change).filter(|change| change.is_finite());
    Difference { figure, a, b, change, p: None, judgement: Judgement::SingleSample }
}

/// Everything of the circumstances that is not the same.
fn conditions(a: &Summary, b: &Summary) -> BTreeMap<String, [String; 2]> {
    let all = |summary: &Summary| {
        let Summary { origin, versions, configuration, .. } = summary;
        let mut all = BTreeMap::new();
        let origin = serde_json::json!({ "cpu": origin.cpu, "cores": origin.cores, "kernel": origin.kernel, "commit": origin.commit });
        flatten("scenario", &summary.scenario.as_str().into(), &mut all);
        flatten("machine", &origin, &mut all);
        flatten("versions", &serde_json::json!(versions), &mut all);
        flatten("configuration", configuration, &mut all);
        all
    };
    let (a, b) = (all(a), all(b));
    let value = |all: &BTreeMap<String, String>, key| all.get(key).cloned().unwrap_or_default();
    let keys = a.keys().chain(b.keys()).filter(|key| a.get(*key) != b.get(*key));
    keys.map(|key| (key.clone(), [value(&a, key), value(&b, key)])).collect()
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let text = match value {
        Value::Object(fields) => {
            return fields.iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, into));
        }
        Value::Null => return,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    into.insert(name.to_owned(), text);
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Noise => "no difference",
            Self::Counted => "different (counted)",
            Self::SingleSample => "one sample",
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pair in &self.runs {
            writeln!(f, "## {}\n", pair.name)?;
            for (condition, [a, b]) in &pair.conditions {
                writeln!(f, "- {condition}: {a:?} → {b:?}")?;
            }
            let mut table = Table::new();
            table.load_preset(presets::ASCII_MARKDOWN).set_header(["figure", "A", "B", "change", "p", "judgement"]);
            for figure in &pair.figures {
                let change = figure.change.map_or("–".to_owned(), |change| format!("{:+.1} %", change * 100.0));
                let p =
                    figure.p.map_or(String::new(), |p| if p < 1e-3 { "< 0.001".to_owned() } else { format!("{p:.3}") });
                let [a, b] = [figure.a, figure.b].map(crate::report::number);
                table.add_row([figure.figure.clone(), a, b, change, p, figure.judgement.to_string()]);
            }
            writeln!(f, "{}{table}\n", if pair.conditions.is_empty() { "" } else { "\n" })?;
        }
        if !self.only_in_one.is_empty() {
            writeln!(f, "Only in one of them: {}.\n", self.only_in_one.join(", "))?;
        }
        let relevance = RELEVANCE * 100.0;
        write!(
            f,
            "Medians of the intervals. More than noise: Mann–Whitney U of batch means with p < {SIGNIFICANCE}, and medians at least \
             {relevance} % apart. It sees noise within a run, not between runs: repeat what matters."
        )
    }
}
