//! What the pipeline must reach on two cores, and the table that says whether it did.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::summary::Summary;
use crate::threshold::{Condition, figure};

/// One line of the table: which figures of which scenario are shown, and what must hold.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    what: &'static str,
    scenario: &'static str,
    /// Figure and unit.
    rate: Option<(&'static str, &'static str)>,
    ratio: Option<&'static str>,
    /// Figures, in milliseconds unless their name ends in `_s`.
    latency: &'static [&'static str],
    cpu: Option<&'static str>,
    /// Must hold.
    least: &'static [&'static str],
    /// Should hold.
    aim: &'static [&'static str],
}

const NOTHING: Target =
    Target { what: "", scenario: "", rate: None, ratio: None, latency: &[], cpu: None, least: &[], aim: &[] };

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        what: "steady 8,000/s, end to end",
        scenario: "steady",
        rate: Some(("rate.acknowledged", "/s")),
        latency: &["topic.mean_ms", "topic.p99_ms", "cql.p99_ms"],
        cpu: Some("cpu_per_100k.processor"),
        least: &["topic.mean_ms < 50", "topic.p99_ms < 200"],
        aim: &["topic.p99_ms < 100"],
        ..NOTHING
    },
    Target {
        what: "acknowledgement at 8,000/s",
        scenario: "steady",
        rate: Some(("rate.acknowledged", "/s")),
        latency: &["ack.p50_ms", "ack.p99_ms"],
        cpu: Some("cpu_per_100k.ingest"),
        least: &["ack.p50_ms < 8", "ack.p99_ms < 30"],
        aim: &["ack.p99_ms < 15"],
        ..NOTHING
    },
    Target {
        what: "ingest, 100 a request",
        scenario: "batched",
        rate: Some(("rate.acknowledged", "/s")),
        ratio: Some("produce"),
        latency: &["ack.p50_ms", "ack.p99_ms"],
        cpu: Some("cpu_per_100k.ingest"),
        least: &["rate.acknowledged >= 110000", "ratio.produce >= 0.35", "cpu_per_100k.ingest <= 1.0"],
        aim: &["rate.acknowledged >= 150000", "cpu_per_100k.ingest <= 0.7"],
    },
    Target {
        what: "ingest, one a message",
        scenario: "one-per-request",
        rate: Some(("rate.acknowledged", "/s")),
        ratio: Some("grpc_echo_single"),
        latency: &["ack.p50_ms", "ack.p99_ms"],
        cpu: Some("cpu_per_100k.ingest"),
        least: &["rate.acknowledged >= 40000", "cpu_per_100k.ingest <= 3.0"],
        aim: &["rate.acknowledged >= 70000", "cpu_per_100k.ingest <= 1.5"],
    },
    Target {
        what: "drain of a backlog",
        scenario: "drain",
        rate: Some(("rate.drained", "/s")),
        ratio: Some("cql_batch"),
        latency: &["commit_p50_ms", "commit_p99_ms"],
        cpu: Some("cpu_per_100k.processor"),
        least: &["ratio.cql_batch >= 0.75", "cpu_per_100k.processor <= 1.5"],
        aim: &["ratio.cql_batch >= 0.9", "cpu_per_100k.processor <= 1.0"],
    },
    Target {
        what: "knee, all of it together",
        scenario: "ramp",
        rate: Some(("rate.knee", "/s")),
        ratio: Some("cql_batch"),
        least: &["rate.knee >= 20000", "ratio.cql_batch >= 0.4"],
        aim: &["rate.knee >= 30000"],
        ..NOTHING
    },
    Target {
        what: "burst 8,000 → 80,000/s for 10 s",
        scenario: "burst",
        rate: Some(("rate.acknowledged", "/s")),
        latency: &["burst.ack.p99_ms", "backlog_gone_s"],
        cpu: Some("cpu_per_100k.processor"),
        least: &["failed == 0", "backlog_gone_s < 60", "burst.ack.p99_ms < 500", "rss_mb.ingest < 512"],
        aim: &["burst.ack.p99_ms < 100"],
        ..NOTHING
    },
    Target {
        what: "hot key: one repository takes half",
        scenario: "hot-key",
        rate: Some(("rate.drained", "/s")),
        ratio: Some("drain"),
        cpu: Some("cpu_per_100k.processor"),
        least: &["ratio.drain >= 0.6"],
        aim: &["ratio.drain >= 0.8"],
        ..NOTHING
    },
    Target {
        what: "duplicates: half are repeats",
        scenario: "duplicates",
        rate: Some(("rate.drained", "/s")),
        ratio: Some("drain"),
        cpu: Some("cpu_per_100k.processor"),
        least: &["ratio.drain >= 1.3"],
        aim: &["ratio.drain >= 1.6"],
        ..NOTHING
    },
    Target {
        what: "large: 1 MiB to 4 MiB",
        scenario: "large",
        rate: Some(("mb_per_second", " MB/s")),
        latency: &["ack.p50_ms", "ack.p99_ms"],
        cpu: Some("cpu_per_100k.ingest"),
        least: &["mb_per_second >= 150", "rss_mb.ingest < 512"],
        aim: &["mb_per_second >= 300"],
        ..NOTHING
    },
    Target {
        what: "dedup memory at 10 M ids",
        scenario: "dedup-memory",
        rate: Some(("bytes_per_id", " B an id")),
        least: &["bytes_per_id <= 120"],
        aim: &["bytes_per_id <= 60"],
        ..NOTHING
    },
    Target {
        what: "ledger replay on assignment",
        scenario: "drain",
        rate: Some(("replay_ids_per_s", " ids/s")),
        latency: &["replay_ready_s"],
        least: &["replay_ids_per_s >= 1000000"],
        aim: &["replay_ids_per_s >= 3000000"],
        ..NOTHING
    },
    Target {
        what: "cost of transactions",
        scenario: "limits",
        rate: Some(("rate.transactions", "/s")),
        least: &["cost_of_transactions <= 0.15"],
        aim: &["cost_of_transactions <= 0.08"],
        ..NOTHING
    },
    Target {
        what: "cold start",
        scenario: "cold-start",
        latency: &["processor_ready.max_ms", "ingest_ready.max_ms", "topic.p50_ms"],
        least: &["processor_ready.max_ms < 3000", "ingest_ready.max_ms < 1000"],
        aim: &["processor_ready.max_ms < 1000", "ingest_ready.max_ms < 300"],
        ..NOTHING
    },
];

/// A target with what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// Its rate, with unit.
    pub rate: String,
    /// As a share of which limit.
    pub ratio: String,
    /// Latencies, each with its name.
    pub latency: String,
    /// CPU seconds for every 100,000.
    pub cpu: String,
    /// What must hold.
    pub target: String,
    /// Whether it does. A figure that was not measured holds nothing.
    pub met: bool,
    /// Whether what should hold does, too.
    pub aim: bool,
}

/// Every target held against the summaries of one measurement, by scenario.
pub fn rows(summaries: &BTreeMap<String, Summary>) -> Vec<Row> {
    TARGETS.iter().map(|target| target.row(summaries.get(target.scenario))).collect()
}

impl Target {
    fn row(&self, summary: Option<&Summary>) -> Row {
        let value = |name: &str| summary.and_then(|summary| figure(summary, name));
        let holds = |conditions: &[&str]| {
            let met = |text: &&str| match (text.parse::<Condition>(), summary) {
                (Ok(condition), Some(summary)) => condition.check(summary).met,
                _ => false,
            };
            conditions.iter().all(met)
        };
        let shown = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{}{unit}", rounded(value)))
        };
        let latency = self.latency.iter().map(|name| {
            let unit = if name.ends_with("_s") { " s" } else { " ms" };
            let short = name.trim_end_matches("_ms").trim_end_matches("_s");
            format!("{short} {}", shown(value(name), unit))
        });
        let ratio = |limit: &str| {
            let ratio = value(&format!("ratio.{limit}"));
            ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} % of {limit}", ratio * 100.0))
        };
        let met = holds(self.least);
        Row {
            what: self.what,
            rate: self.rate.map(|(name, unit)| shown(value(name), unit)).unwrap_or_default(),
            ratio: self.ratio.map(ratio).unwrap_or_default(),
            latency: latency.collect::<Vec<_>>().join(", "),
            cpu: self.cpu.map(|name| shown(value(name), "")).unwrap_or_default(),
            target: self.least.join(", "),
            met,
            aim: met && holds(self.aim),
        }
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut table = markdown(&["what", "rate", "ratio to limit", "latency", "CPU-s per 100,000", "target", "met"]);
    for row in rows {
        let met = match (row.met, row.aim) {
            (true, true) => "yes, and the aim",
            (true, false) => "yes",
            (false, _) => "**no**",
        };
        let Row { what, rate, ratio, latency, cpu, target, .. } = row;
        table.add_row([what, rate.as_str(), ratio, latency, cpu, target, met]);
    }
    table.to_string()
}

/// A Markdown table with these column titles.
pub(crate) fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

/// Few digits: whole numbers with separated thousands from a hundred on, else one decimal, two below ten.
pub(crate) fn rounded(number: f64) -> String {
    match number {
        100.0.. => thousands(number),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::BUILT_IN;
    use crate::summary::Rate;

    #[test]
    fn every_condition_can_be_read_and_every_scenario_exists() {
        for target in TARGETS {
            for condition in target.least.iter().chain(target.aim) {
                assert!(condition.parse::<Condition>().is_ok(), "{condition}");
            }
            let known = BUILT_IN.iter().any(|(name, _)| *name == target.scenario);
            assert!(known || ["limits", "dedup-memory"].contains(&target.scenario), "{}", target.scenario);
        }
    }

    #[test]
    fn a_target_is_met_by_figures_and_by_nothing_else() {
        let rate = |per_second| {
            let rate =
                Rate { name: "knee".to_owned(), per_second, limit: Some("cql_batch".to_owned()), ratio: Some(0.5) };
            BTreeMap::from([("ramp".to_owned(), Summary { rates: vec![rate], ..Summary::default() })])
        };
        let knee = |summaries| rows(&summaries).into_iter().find(|row| row.what.starts_with("knee")).unwrap();
        let found = [rate(19_999.0), rate(20_000.0), rate(30_000.0), BTreeMap::new()].map(|rates| {
            let row = knee(rates);
            (row.met, row.aim)
        });
        assert_eq!(found, [(false, false), (true, false), (true, true), (false, false)]);
        let row = knee(rate(20_000.0));
        assert_eq!((row.rate.as_str(), row.ratio.as_str()), ("20,000/s", "50 % of cql_batch"));
    }

    #[test]
    fn numbers_have_few_digits() {
        for (number, text) in
            [(0.0, "0.00"), (9.876, "9.88"), (12.34, "12.3"), (999.6, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(rounded(number), text);
        }
    }
}
