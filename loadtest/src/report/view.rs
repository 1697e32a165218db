//! What the template is given: each run with its key figures, charts and bars.

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::chart::{Axes, COLOURS, Chart, Drawn, Line};
use super::format;
use crate::results::{Interval, Results};
use crate::summary::{Audit, Percentiles, Rate, Series, Summary, Usage, Verdict, latency};

/// Width and height of a chart that has a neighbour, and of one that spans the page.
const HALF: (u32, u32) = (520, 230);
const FULL: (u32, u32) = (1060, 300);

/// The latencies in the order of a packet's path, what the page calls them, and their colours.
const LATENCIES: [(&str, &str, usize); 5] = [
    (latency::ACK, "acknowledgement", 0),
    (latency::SERVICE, "service time", 7),
    (latency::TOPIC, "to the topic", 1),
    (latency::CQL, "to CQL", 2),
    ("slip", "generator's slip", 3),
];
/// Those that stand for the run.
const KEY: [&str; 3] = [latency::ACK, latency::TOPIC, latency::CQL];
/// The charts over time in their order: what the series say, the title.
const CHARTS: [(&str, &str); 7] = [
    ("throughput", "Throughput"),
    ("backlog", "Backlog and lag"),
    ("cpu", "CPU"),
    ("rss", "Resident memory"),
    ("files", "Open files"),
    ("threads", "Threads"),
    ("errors", "Errors"),
];

/// One run as the page shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Run<'a> {
    name: &'a str,
    /// Its anchor, unique on the page.
    id: String,
    summary: &'a Summary,
    verdict: &'static str,
    started: String,
    cards: Vec<Card>,
    /// The rate that stands for the run: the first.
    rate: Option<&'a Rate>,
    /// CPU seconds of ingest and processor for every 100,000 packets.
    own_cpu: Option<f64>,
    audit: Option<String>,
    latencies: Vec<Latency>,
    percentiles: Option<Drawn>,
    charts: Vec<Drawn>,
    partitions: Option<Partitions>,
    configuration: String,
}

/// A key figure.
#[derive(Debug, Serialize)]
struct Card {
    label: String,
    value: String,
    note: String,
    /// `good`, `bad` or nothing; `words` where the value is no number.
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct Latency {
    name: String,
    label: String,
    colour: usize,
    values: Percentiles,
}

/// How evenly the records are spread.
#[derive(Debug, Serialize)]
struct Partitions {
    /// The fullest as a multiple of the mean.
    skew: f64,
    /// Records, and height as a percentage of the fullest.
    bars: Vec<(u64, f64)>,
}

impl<'a> Run<'a> {
    /// Everything the page says of `results`, which is the page's run number `number`.
    pub(crate) fn new(results: &'a Results, number: usize) -> Result<Self> {
        let summary = &results.summary;
        let latencies = latencies(summary);
        let mut charts = vec![latency_over_time(results)];
        charts.extend(CHARTS.map(|(chart, title)| over_time(summary, chart, title)));
        Ok(Self {
            name: &results.name,
            id: format!("run-{number}"),
            summary,
            verdict: verdict(summary),
            started: started(&summary.started),
            cards: cards(summary),
            rate: summary.rates.first(),
            own_cpu: own_cpu(summary),
            audit: summary.audit.as_ref().map(amiss),
            percentiles: percentile_curves(results, &latencies).draw(FULL)?,
            charts: charts.into_iter().filter_map(|chart| chart.draw(HALF).transpose()).collect::<Result<_>>()?,
            latencies,
            partitions: partitions(&summary.partitions),
            configuration: match &summary.configuration {
                serde_json::Value::Null => String::new(),
                configuration => serde_json::to_string_pretty(configuration)?,
            },
        })
    }
}

fn verdict(summary: &Summary) -> &'static str {
    match summary.verdict {
        Verdict::Passed if summary.thresholds.is_empty() => "measured",
        Verdict::Passed => "passed",
        Verdict::Missed => "missed",
        Verdict::Invalid => "invalid",
        Verdict::Interrupted => "interrupted",
    }
}

/// A moment for people: to the second.
fn started(started: &str) -> String {
    let moment = OffsetDateTime::parse(started, &Rfc3339).ok();
    let text = moment.and_then(|moment| {
        moment.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC")).ok()
    });
    text.unwrap_or_else(|| started.to_owned())
}

fn cards(summary: &Summary) -> Vec<Card> {
    let mut cards = Vec::new();
    let mut card = |label: &str, value: String, note: String, state| {
        cards.push(Card { label: label.to_owned(), value, note, state });
    };
    // Without a packet sent the rates are of equal weight.
    if let Some(rate) = summary.rates.first().filter(|_| summary.packets.sent > 0) {
        let note = match (rate.ratio, &rate.limit) {
            (Some(ratio), Some(limit)) => format!("{} of the {limit} limit", format::percent(ratio)),
            _ => String::new(),
        };
        card(&rate.name, format!("{} /s", format::number(rate.per_second)), note, "");
    }
    for (name, label, _) in LATENCIES.iter().filter(|(name, ..)| KEY.contains(name)) {
        if let Some(values) = summary.latencies.get(*name).filter(|values| values.count > 0) {
            let note = format!("p50 {}", format::milliseconds(values.p50));
            card(&format!("p99 {label}"), format::milliseconds(values.p99), note, "");
        }
    }
    if let Some(cpu) = own_cpu(summary) {
        let part = |usage: &Usage| format!("{} {}", usage.name, format::number(usage.cpu_seconds_per_100k));
        let note: Vec<_> = own(summary).map(part).collect();
        card("CPU-s per 100,000", format::number(cpu), note.join(" · "), "");
    }
    if let Some(audit) = &summary.audit {
        let note = format!("of {} acknowledged", format::thousands(audit.acknowledged as f64));
        card("audit", amiss(audit), note, if audit.is_clean() { "words good" } else { "words bad" });
    }
    if summary.packets.sent > 0 {
        let refused: u64 = summary.errors.values().sum();
        let (packets, state) = (&summary.packets, if summary.packets.failed == 0 { "" } else { "bad" });
        let note = format!(
            "{} refusals, {} sent again",
            format::thousands(refused as f64),
            format::thousands(packets.retried as f64)
        );
        card("packets failed", format::thousands(packets.failed as f64), note, state);
        let generator = &summary.generator;
        let note = format!(
            "slip p99 {}, {} of a core",
            format::milliseconds(generator.slip_p99_ms),
            format::percent(generator.cpu)
        );
        let (value, state) =
            if generator.behind { ("fell behind", "words bad") } else { ("kept its plan", "words good") };
        card("generator", value.to_owned(), note, state);
    }
    cards
}

fn own(summary: &Summary) -> impl Iterator<Item = &Usage> {
    summary.processes.iter().filter(|usage| ["ingest", "processor"].contains(&usage.name.as_str()))
}

fn own_cpu(summary: &Summary) -> Option<f64> {
    own(summary).map(|usage| usage.cpu_seconds_per_100k).reduce(|a, b| a + b)
}

/// What an audit found, in a few words.
fn amiss(audit: &Audit) -> String {
    let kinds = [
        (audit.lost, "lost"),
        (audit.duplicated, "duplicated"),
        (audit.altered, "altered"),
        (audit.reordered, "reordered"),
        (audit.unsent, "unsent"),
    ];
    let found: Vec<_> = kinds
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{} {kind}", format::thousands(*count as f64)))
        .collect();
    if found.is_empty() { "clean".to_owned() } else { found.join(", ") }
}

/// The latencies with anything counted, those of [`LATENCIES`] first.
fn latencies(summary: &Summary) -> Vec<Latency> {
    let others = summary.latencies.keys().filter(|name| LATENCIES.iter().all(|(known, ..)| known != name));
    LATENCIES
        .into_iter()
        .chain(others.map(|name| (name.as_str(), name.as_str(), 4)))
        .filter_map(|(name, label, colour)| {
            let values = *summary.latencies.get(name).filter(|values| values.count > 0)?;
            Some(Latency { name: name.to_owned(), label: label.to_owned(), colour, values })
        })
        .collect()
}

/// Every latency over the nines, as far as there are counts to speak of: the curve ends where one event is left.
fn percentile_curves(results: &Results, latencies: &[Latency]) -> Chart {
    let line = |latency: &Latency| {
        let total = results.total(&latency.name)?;
        let most = (total.len() as f64).log10().clamp(1.0, 6.0);
        let at = |step: i32| {
            let nines = f64::from(step) / 32.0;
            (nines, Some(total.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64 / 1e3))
        };
        let points = (0..=(most * 32.0) as i32).map(at).collect();
        Some(Line { name: latency.label.clone(), colour: latency.colour, pale: false, points })
    };
    Chart {
        title: "Latency by percentile".to_owned(),
        unit: "ms".to_owned(),
        axes: Axes::Percentiles,
        lines: latencies.iter().filter_map(line).collect(),
        events: Vec::new(),
    }
}

/// The median and the 99th percentile of each interval: of the interval logs, or else what the timeline has.
fn latency_over_time(results: &Results) -> Chart {
    let summary = &results.summary;
    let mut chart = over_time(summary, "latency", "Latency");
    chart.axes = Axes::LatencyOverTime;
    "ms".clone_into(&mut chart.unit);
    if results.latencies.is_empty() {
        return chart;
    }
    chart.lines.clear();
    for latency in latencies(summary).into_iter().filter(|latency| KEY.contains(&latency.name.as_str())) {
        let intervals = results.latencies.get(&latency.name).map_or(&[][..], Vec::as_slice);
        let line = |quantile, name: &str, pale| Line {
            name: format!("{} {name}", latency.name),
            colour: latency.colour,
            pale,
            points: intervals.iter().map(|interval| point(interval, quantile)).collect(),
        };
        chart.lines.extend([line(0.99, "p99", false), line(0.5, "p50", true)]);
    }
    chart
}

fn point(interval: &Interval, quantile: f64) -> (f64, Option<f64>) {
    let histogram = &interval.histogram;
    (interval.start, (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64 / 1e3))
}

/// The timeline's series that belong to `chart`.
fn over_time(summary: &Summary, chart: &str, title: &str) -> Chart {
    let timeline = &summary.timeline;
    let series: Vec<&Series> = timeline.series.iter().filter(|series| series.chart == chart).collect();
    // A process has one colour in all charts.
    let processes: Vec<_> =
        timeline.series.iter().filter(|series| series.chart == "cpu").map(|series| &series.name).collect();
    let line = |(at, series): (usize, &&Series)| {
        let process = processes.iter().position(|name| **name == series.name);
        let at = process.filter(|_| ["cpu", "rss", "files", "threads"].contains(&chart)).unwrap_or(at);
        let points = series.values.iter().enumerate().map(|(k, value)| (k as f64 * timeline.interval, *value));
        Line { name: series.name.clone(), colour: at % COLOURS, pale: at >= COLOURS, points: points.collect() }
    };
    Chart {
        title: title.to_owned(),
        unit: series.first().map_or(String::new(), |series| series.unit.clone()),
        axes: Axes::Time,
        lines: series.iter().enumerate().map(line).collect(),
        events: timeline.events.iter().map(|event| event.at).collect(),
    }
}

fn partitions(records: &[u64]) -> Option<Partitions> {
    let most = *records.iter().max().filter(|most| **most > 0)? as f64;
    let mean = records.iter().sum::<u64>() as f64 / records.len() as f64;
    let bars = records.iter().map(|count| (*count, (*count as f64 / most * 100.0).round())).collect();
    Some(Partitions { skew: most / mean, bars })
}
