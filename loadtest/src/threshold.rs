//! Conditions on the figures of a run: `p99_ms < 200`, `lost == 0`, `ratio.cql_batch >= 0.75`.
//!
//! | figure | what it is |
//! |---|---|
//! | `<latency>.<percentile>_ms` | `ack`, `service`, `topic`, `cql` and what else the run timed; `mean`, `p50`, `p90`, `p99`, `p999`, `max` |
//! | `<percentile>_ms` | of the end-to-end latency where there is one, else of the acknowledgement |
//! | `rate.<name>` | a rate, per second: `acknowledged`, `delivered`, `drained`, `knee` |
//! | `ratio.<limit>` | a rate as a share of that limit |
//! | `cpu_per_100k.<process>`, `rss_mb.<process>` | CPU seconds for every 100,000 packets; most memory |
//! | `growth.rss.<process>`, `growth.files.…`, `growth.threads.…`, `growth.cpu.…` | its median in the last quarter of the run, as a multiple of that in the quarter before: 1 is flat |
//! | `acknowledged`, `failed`, `retried`, `errors` | packets; `errors` is the sum of all answers that were not `committed` |
//! | `lost`, `duplicated`, `altered`, `reordered`, `unsent` | of the audit |
//! | `slip_p99_ms` | of the generator |
//! | any other | an entry of the summary's `figures` |

use std::fmt;
use std::str::FromStr;

use crate::summary::{self, Percentiles, Summary, latency};

/// A figure, a comparison and a bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The figure's name.
    pub figure: String,
    comparison: Comparison,
    bound: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

/// Two-character operators first: `<` is the beginning of `<=`.
const OPERATORS: [(&str, Comparison); 5] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("==", Comparison::Equal),
    ("<", Comparison::Less),
    (">", Comparison::More),
];

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = "expected a figure, one of <, <=, ==, >=, >, and a number, as in `p99_ms < 200`";
        let parts = OPERATORS.iter().find_map(|(sign, comparison)| {
            let (figure, bound) = text.split_once(sign)?;
            Some((figure.trim(), *comparison, bound.trim()))
        });
        let (figure, comparison, bound) = parts.ok_or(allowed)?;
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if figure.is_empty() || !figure.chars().all(named) {
            return Err(allowed.to_owned());
        }
        let bound = bound.replace('_', "").parse().map_err(|_| allowed)?;
        Ok(Self { figure: figure.to_owned(), comparison, bound })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = OPERATORS.iter().find(|(_, comparison)| *comparison == self.comparison);
        write!(f, "{} {} {}", self.figure, sign.map_or("", |(sign, _)| sign), self.bound)
    }
}

impl Condition {
    /// Holds the condition against a run. A figure that was not measured holds nothing.
    pub fn check(&self, summary: &Summary) -> summary::Threshold {
        let actual = figure(summary, &self.figure);
        summary::Threshold { condition: self.to_string(), actual, met: actual.is_some_and(|actual| self.holds(actual)) }
    }

    fn holds(&self, actual: f64) -> bool {
        match self.comparison {
            Comparison::Less => actual < self.bound,
            Comparison::AtMost => actual <= self.bound,
            Comparison::Equal => (actual - self.bound).abs() < f64::EPSILON,
            Comparison::AtLeast => actual >= self.bound,
            Comparison::More => actual > self.bound,
        }
    }
}

/// A figure of a run by its name; see the module.
pub fn figure(summary: &Summary, name: &str) -> Option<f64> {
    if let Some(value) = summary.figures.get(name) {
        return Some(*value);
    }
    let audit = |count: fn(&summary::Audit) -> u64| summary.audit.as_ref().map(|audit| count(audit) as f64);
    match name {
        "acknowledged" => Some(summary.packets.acknowledged as f64),
        "failed" => Some(summary.packets.failed as f64),
        "retried" => Some(summary.packets.retried as f64),
        "errors" => Some(summary.errors.values().sum::<u64>() as f64),
        "slip_p99_ms" => Some(summary.generator.slip_p99_ms),
        "lost" => audit(|audit| audit.lost),
        "duplicated" => audit(|audit| audit.duplicated),
        "altered" => audit(|audit| audit.altered),
        "reordered" => audit(|audit| audit.reordered),
        "unsent" => audit(|audit| audit.unsent),
        _ => match name.split_once('.') {
            Some((kind, of)) => part(summary, kind, of),
            None => percentile(end_to_end(summary)?, name),
        },
    }
}

fn part(summary: &Summary, kind: &str, of: &str) -> Option<f64> {
    let rate = |matches: &dyn Fn(&summary::Rate) -> bool| summary.rates.iter().find(|rate| matches(rate));
    let usage = || summary.processes.iter().find(|usage| usage.name == of);
    match kind {
        "rate" => rate(&|rate| rate.name == of).map(|rate| rate.per_second),
        "ratio" => rate(&|rate| rate.limit.as_deref() == Some(of))?.ratio,
        "cpu_per_100k" => usage().map(|usage| usage.cpu_seconds_per_100k),
        "rss_mb" => usage().map(|usage| usage.peak_rss_bytes as f64 / 1e6),
        "growth" => growth(summary, of.split_once('.')?),
        latency => percentile(summary.latencies.get(latency)?, of),
    }
}

/// Medians, so that a restart within a quarter does not decide. Of neighbours, so that what a process takes while it starts, or because
/// it had to replay, is no growth: a run leaves its second half to processes that have settled.
fn growth(summary: &Summary, (chart, process): (&str, &str)) -> Option<f64> {
    let mut curves = summary.timeline.series.iter();
    let curve = &curves.find(|series| series.chart == chart && series.name == process)?.values;
    let quarter = curve.len() / 4;
    let (before, last) = curve.get(curve.len() - 2 * quarter..)?.split_at(quarter);
    Some(median(last)? / median(before)?)
}

fn median(samples: &[Option<f64>]) -> Option<f64> {
    let mut samples: Vec<_> = samples.iter().copied().flatten().collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

fn end_to_end(summary: &Summary) -> Option<&Percentiles> {
    summary.latencies.get(latency::TOPIC).or_else(|| summary.latencies.get(latency::ACK))
}

fn percentile(of: &Percentiles, name: &str) -> Option<f64> {
    let value = match name {
        "mean_ms" => of.mean,
        "p50_ms" => of.p50,
        "p90_ms" => of.p90,
        "p99_ms" => of.p99,
        "p999_ms" => of.p999,
        "max_ms" => of.max,
        _ => return None,
    };
    (of.count > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::{Audit, Rate, Series, Timeline, Usage};

    fn summary() -> Summary {
        let percentiles = |p99| Percentiles { count: 10, p99, ..Percentiles::default() };
        let rate = |name: &str, limit: &str, ratio| Rate {
            name: name.to_owned(),
            per_second: 100.0,
            limit: Some(limit.to_owned()),
            ratio: Some(ratio),
        };
        let curve = |name: &str| Series {
            chart: "rss".to_owned(),
            name: name.to_owned(),
            // Restarted in the last quarter, which is no growth.
            values: [5, 5, 5, 20, 20, 20, 10, 10, 12, 0, 15, 15].map(|mb| (mb > 0).then_some(f64::from(mb))).into(),
            ..Series::default()
        };
        Summary {
            latencies: [("ack", 10.0), ("topic", 150.0)].map(|(name, p99)| (name.to_owned(), percentiles(p99))).into(),
            rates: vec![rate("drained", "cql_batch", 0.8), rate("drained", "drain", 1.4)],
            processes: vec![Usage {
                name: "ingest".to_owned(),
                cpu_seconds_per_100k: 0.9,
                peak_rss_bytes: 35_000_000,
                ..Usage::default()
            }],
            audit: Some(Audit { lost: 1, ..Audit::default() }),
            timeline: Timeline {
                series: vec![curve("ingest"), Series { values: vec![Some(1.0)], ..curve("short") }],
                ..Timeline::default()
            },
            figures: [("burst.ack.p99_ms".to_owned(), 400.0)].into(),
            ..Summary::default()
        }
    }

    #[test]
    fn figures_are_found_by_name() {
        let summary = summary();
        for (name, value) in [
            ("p99_ms", 150.0),
            ("ack.p99_ms", 10.0),
            ("burst.ack.p99_ms", 400.0),
            ("rate.drained", 100.0),
            ("ratio.cql_batch", 0.8),
            ("ratio.drain", 1.4),
            ("cpu_per_100k.ingest", 0.9),
            ("rss_mb.ingest", 35.0),
            ("growth.rss.ingest", 1.5),
            ("lost", 1.0),
            ("failed", 0.0),
        ] {
            assert_eq!(figure(&summary, name), Some(value), "{name}");
        }
        for unknown in [
            "p98_ms",
            "cql.p99_ms",
            "rate.knee",
            "ratio.produce",
            "rss_mb.kafka",
            "growth.rss.kafka",
            "growth.rss.short",
            "growth.rss",
            "nonsense",
        ] {
            assert_eq!(figure(&summary, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_comparison_holds_where_it_should() {
        let summary = summary();
        for (condition, met) in [
            ("p99_ms < 150", false),
            ("p99_ms <= 150", true),
            ("lost == 0", false),
            ("ratio.cql_batch >= 0.75", true),
            ("rate.drained > 99.5", true),
            ("rate.drained>=110_000", false),
            ("cql.p99_ms < 1000", false),
        ] {
            let parsed: Condition = condition.parse().unwrap();
            assert_eq!(parsed.check(&summary).met, met, "{condition}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for wrong in ["", "p99_ms", "p99_ms < fast", "< 3", "p99_ms = 3", "two words < 3"] {
            assert!(wrong.parse::<Condition>().unwrap_err().contains("p99_ms < 200"), "{wrong}");
        }
    }
}
