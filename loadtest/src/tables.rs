//! Reports as tables for people and JSON for programs.

use clap::ValueEnum;
use comfy_table::{Table, presets};

use crate::drain::DrainReport;
use crate::figures::{FiguresReport, Target};
use crate::ingest::IngestReport;
use crate::resources::Usage;

/// How a report is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// A Markdown table with these column titles, numbers set as text.
pub(crate) fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

/// A whole number with separated thousands, the way the documents write them.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number < 0.0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Few digits: whole numbers from a hundred on, else one decimal, two below ten.
fn rounded(number: f64) -> String {
    match number {
        _ if number.is_nan() => "none".to_owned(),
        100.0.. => thousands(number),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

impl IngestReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let mut table = markdown(&["measured", "value"]);
        let latency = &self.latency_ms;
        let (compressed, expanded) = self.content_bytes;
        table
            .add_row(["packets", &thousands(self.packets as f64)])
            .add_row(["content of one", &format!("{compressed} B gzip, {expanded} B expanded")])
            .add_row(["acknowledged", &thousands(self.acknowledged as f64)])
            .add_row(["acknowledged per second", &thousands(self.per_second)])
            .add_row(["seconds", &format!("{:.2}", self.seconds)])
            .add_row([
                "latency p50 / p90 / p99 / p99.9 / max",
                &format!(
                    "{:.1} / {:.1} / {:.1} / {:.1} / {:.1} ms",
                    latency.p50, latency.p90, latency.p99, latency.p999, latency.max
                ),
            ]);
        for (code, packets) in &self.errors {
            table.add_row([format!("error {code}"), thousands(*packets as f64)]);
        }
        usage_rows(&mut table, &self.processes);
        table.to_string()
    }
}

impl DrainReport {
    /// The report as a table.
    pub fn table(&self) -> String {
        let mut table = markdown(&["measured", "value"]);
        let milliseconds = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.1}"));
        table
            .add_row(["backlog", &thousands(self.backlog as f64)])
            .add_row(["remaining", &thousands(self.remaining as f64)])
            .add_row(["records in the measured span", &thousands(self.records as f64)])
            .add_row(["seconds", &format!("{:.2}", self.seconds)])
            .add_row(["stored and committed per second", &thousands(self.per_second)])
            .add_row([
                "commit p50 / p99",
                &format!("{} / {} ms", milliseconds(self.commit_p50_ms), milliseconds(self.commit_p99_ms)),
            ]);
        if let Some(ids) = self.ids_remembered {
            table.add_row(["ids remembered", &thousands(ids)]);
        }
        usage_rows(&mut table, &self.processes);
        table.to_string()
    }
}

impl FiguresReport {
    /// The report as Markdown: where it comes from, and one table.
    pub fn markdown(&self) -> String {
        let mut table = markdown(&["figure", "unit", "median", "range", "target", "met"]);
        for figure in &self.figures {
            let (low, high) = figure.range();
            let target = figure.target.map_or(String::new(), |target| match target {
                Target::AtLeast(bound) => format!("≥ {}", thousands(bound)),
                Target::Below(bound) => format!("< {}", thousands(bound)),
            });
            let met = figure.meets_target().map_or("", |met| if met { "yes" } else { "no" });
            let (median, range) = (rounded(figure.median()), format!("{} – {}", rounded(low), rounded(high)));
            table.add_row([figure.what, figure.unit, &median, &range, &target, met]);
        }
        let (shape, runs) = (&self.shape, self.runs.len());
        let packets = self.runs.first().map_or(0, |run| run.ingest.packets);
        let (gzip, expanded) = self.runs.first().map_or((0, 0), |run| run.ingest.content_bytes);
        format!(
            "{table}\n\n{runs} × {} packets ({gzip} B gzip, {expanded} B expanded), {} a request, {} streams with {} \
             requests in flight each.\n{}",
            thousands(packets as f64),
            shape.per_request,
            shape.streams,
            shape.window,
            self.origin
        )
    }
}

fn usage_rows(table: &mut Table, processes: &[Usage]) {
    for usage in processes {
        table
            .add_row([format!("{}: CPU-s per 100,000", usage.name), format!("{:.2}", usage.cpu_seconds_per_100k)])
            .add_row([format!("{}: peak RSS", usage.name), format!("{:.0} MB", usage.peak_rss_bytes as f64 / 1e6)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in
            [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567"), (-1000.0, "-1,000")]
        {
            assert_eq!(thousands(number), text);
        }
    }
}
