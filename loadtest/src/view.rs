//! A run's summary as tables for people.

use crate::scenario::BUILT_IN;
use crate::summary::{Summary, Verdict};
use crate::targets::{markdown, rounded};

/// The built-in scenarios, with what each is for.
pub(crate) fn scenarios() -> String {
    let mut table = markdown(&["scenario", "what it is for"]);
    for (name, text) in BUILT_IN {
        let description = text.lines().find_map(|line| line.strip_prefix("description = "));
        table.add_row([*name, description.unwrap_or_default().trim_matches('"')]);
    }
    table.to_string()
}

/// What a run found.
pub(crate) fn summary(summary: &Summary) -> String {
    let mut table = markdown(&["measured", "value"]);
    let mut row = |what: &str, value: String| {
        table.add_row([what.to_owned(), value]);
    };
    let packets = &summary.packets;
    row(
        "packets sent / acknowledged / failed",
        format!("{} / {} / {}", packets.sent, packets.acknowledged, packets.failed),
    );
    if packets.retried + packets.repeats > 0 {
        row("sent again / repeats", format!("{} / {}", packets.retried, packets.repeats));
    }
    for (code, count) in &summary.errors {
        row(&format!("answered {code}"), count.to_string());
    }
    for rate in &summary.rates {
        let ratio = rate.ratio.zip(rate.limit.as_ref());
        let ratio = ratio.map_or(String::new(), |(ratio, limit)| format!(", {:.0} % of {limit}", ratio * 100.0));
        row(&rate.name, format!("{}/s{ratio}", rounded(rate.per_second)));
    }
    for (name, of) in &summary.latencies {
        let [mean, p50, p90, p99, p999, max] = [of.mean, of.p50, of.p90, of.p99, of.p999, of.max].map(rounded);
        row(
            &format!("{name}: mean / p50 / p90 / p99 / p99.9 / max"),
            format!("{mean} / {p50} / {p90} / {p99} / {p999} / {max} ms"),
        );
    }
    for (name, value) in &summary.figures {
        row(name, rounded(*value));
    }
    for usage in &summary.processes {
        let cpu = format!("{:.2} CPU-s per 100,000", usage.cpu_seconds_per_100k);
        row(&usage.name, format!("{cpu}, {:.0} MB at most", usage.peak_rss_bytes as f64 / 1e6));
    }
    row("generator", format!("slip p99 {:.1} ms, {:.2} cores", summary.generator.slip_p99_ms, summary.generator.cpu));
    if let Some(audit) = &summary.audit {
        let found = format!(
            "{} lost, {} duplicated, {} altered, {} reordered, {} unsent",
            audit.lost, audit.duplicated, audit.altered, audit.reordered, audit.unsent
        );
        row(&format!("audit of {} packets", audit.acknowledged), found);
        for finding in &audit.findings {
            row(&format!("{} {}", finding.kind, finding.packet_id), finding.detail.clone());
        }
    }
    for threshold in &summary.thresholds {
        let actual = threshold.actual.map_or_else(|| "not measured".to_owned(), rounded);
        row(&threshold.condition, format!("{} ({actual})", if threshold.met { "holds" } else { "DOES NOT HOLD" }));
    }
    let verdict = match summary.verdict {
        Verdict::Passed => "passed",
        Verdict::Missed => "a threshold does not hold",
        Verdict::Invalid => "invalid",
        Verdict::Interrupted => "interrupted",
    };
    let said = format!("{}: {verdict}.", summary.scenario);
    let lines: Vec<&str> = std::iter::once(said.as_str()).chain(summary.notes.iter().map(String::as_str)).collect();
    format!("{table}\n\n{}\n{}", lines.join("\n"), summary.origin)
}
