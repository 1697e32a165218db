//! The run over time: one sample of everything each interval, and the distributions' `.hlog` files, written as it goes on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder};

use crate::backlog::Backlog;
use crate::recorder::{Kind, Recorder, read};
use crate::resources::{Look, Resources, Watched};
use crate::summary::{self, Event, Series, Usage};

/// Most samples of a run; a longer one has longer intervals.
const MOST_SAMPLES: u64 = 600;

/// What is sampled.
pub struct Sources {
    /// Distributions and counts.
    pub recorder: Arc<Recorder>,
    /// The group's backlog.
    pub backlog: Arc<Backlog>,
    /// The processes.
    pub watched: Vec<Watched>,
    /// Folder for the `.hlog` files.
    pub folder: PathBuf,
}

/// Samples on a thread of its own until it is finished.
pub struct Timeline {
    started: Instant,
    events: Arc<Mutex<Vec<Event>>>,
    finish: Sender<()>,
    thread: JoinHandle<Result<Collected>>,
}

/// Everything that was sampled.
#[derive(Debug)]
pub struct Collected {
    /// The curves and events.
    pub timeline: summary::Timeline,
    /// What each process used; see [`Resources::usage`].
    resources: Resources,
}

impl Collected {
    /// What each process used for `records` records.
    pub fn usage(&self, records: u64) -> Vec<Usage> {
        self.resources.usage(records)
    }
}

/// The length of the samples of a run that takes about this long.
pub fn interval(run: Duration) -> Duration {
    Duration::from_secs(run.as_secs().div_ceil(MOST_SAMPLES).max(1))
}

impl Timeline {
    /// Begins at `started`, which may lie ahead.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(sources: Sources, started: Instant, interval: Duration) -> Result<Self> {
        let (finish, finished) = channel();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let all = events.clone();
        let thread = thread::Builder::new().name("timeline".to_owned()).spawn(move || {
            let mut collected = sample(&sources, started, interval, &finished)?;
            collected.timeline.events.clone_from(&all.lock().unwrap_or_else(PoisonError::into_inner));
            Ok(collected)
        })?;
        Ok(Self { started, events, finish, thread })
    }

    /// Notes something that happened now.
    pub fn event(&self, what: &str) {
        let event = Event { at: self.started.elapsed().as_secs_f64(), what: what.to_owned() };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Takes the last sample and stops.
    ///
    /// # Errors
    /// When a file could not be written.
    pub fn finish(self) -> Result<Collected> {
        // A thread that has failed already says why below.
        let _ = self.finish.send(());
        self.thread.join().map_err(|_| anyhow!("the thread that samples failed"))?
    }
}

fn sample(sources: &Sources, started: Instant, interval: Duration, finish: &Receiver<()>) -> Result<Collected> {
    let mut finished = wait_until(started, finish);
    let mut resources = Resources::new(&sources.watched);
    let mut curves = Curves::new(&resources);
    let mut before = Counts::read(&sources.recorder);
    let mut files = Kind::ALL.map(super::recorder::Kind::name).map(|name| (name, V2DeflateSerializer::new()));
    let mut outputs = Vec::new();
    for (name, _) in &files {
        let path = sources.folder.join(format!("{name}.hlog"));
        outputs.push(BufWriter::new(File::create(&path).with_context(|| format!("cannot write {}", path.display()))?));
    }
    let base = SystemTime::now();
    let mut logs: Vec<Log<'_>> = Vec::new();
    for (output, (_, serializer)) in outputs.iter_mut().zip(&mut files) {
        let mut builder = IntervalLogWriterBuilder::new();
        builder.add_comment("microseconds").with_start_time(base).with_base_time(base).with_max_value_divisor(1e3);
        logs.push(builder.begin_log_with(output, serializer)?);
    }
    let mut number = 0;
    while !finished {
        let from = interval * number;
        finished = wait_until(started + from + interval, finish);
        number += 1;
        let length = started.elapsed().saturating_sub(from);
        let counts = Counts::read(&sources.recorder);
        let mut values = BTreeMap::new();
        counts.since(&before, length, &mut values);
        before = counts;
        if let Some(look) = sources.backlog.latest() {
            values.insert("packets topic".to_owned(), look.waiting() as f64);
        }
        for (kind, log) in Kind::ALL.into_iter().zip(&mut logs) {
            let latency = sources.recorder.next_interval(kind)?;
            log.write_histogram(latency.histogram(), from, length, None)
                .map_err(|error| anyhow!("cannot write the log of {}: {error}", kind.name()))?;
            let percentiles = latency.percentiles();
            if percentiles.count > 0 {
                values.insert(format!("{} p50", kind.name()), percentiles.p50);
                values.insert(format!("{} p99", kind.name()), percentiles.p99);
            }
        }
        curves.add(&values, &resources.look());
    }
    drop(logs);
    for mut output in outputs {
        output.flush().context("cannot write a log")?;
    }
    let timeline = summary::Timeline { interval: interval.as_secs_f64(), series: curves.0, events: Vec::new() };
    Ok(Collected { timeline, resources })
}

type Log<'a> = IntervalLogWriter<'a, 'a, BufWriter<File>, V2DeflateSerializer>;

/// Whether the end was called for before that.
fn wait_until(moment: Instant, finish: &Receiver<()>) -> bool {
    let left = moment.saturating_duration_since(Instant::now());
    !matches!(finish.recv_timeout(left), Err(RecvTimeoutError::Timeout))
}

/// Counts at one moment.
struct Counts {
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    errors: u64,
}

impl Counts {
    fn read(recorder: &Recorder) -> Self {
        Self {
            sent: read(&recorder.sent),
            acknowledged: read(&recorder.acknowledged_in_all),
            delivered: read(&recorder.delivered),
            errors: recorder.errors().values().sum(),
        }
    }

    fn since(&self, before: &Self, length: Duration, values: &mut BTreeMap<String, f64>) {
        let seconds = length.as_secs_f64().max(1e-3);
        for (name, now, before) in [
            ("sent", self.sent, before.sent),
            ("acknowledged", self.acknowledged, before.acknowledged),
            ("published", self.delivered, before.delivered),
            ("refused or failed", self.errors, before.errors),
        ] {
            values.insert(name.to_owned(), now.saturating_sub(before) as f64 / seconds);
        }
        let waiting = self.acknowledged.saturating_sub(self.delivered);
        values.insert("acknowledged, not published".to_owned(), waiting as f64);
    }
}

/// The curves in the order of their charts.
struct Curves(Vec<Series>);

impl Curves {
    fn new(resources: &Resources) -> Self {
        let series = |chart: &str, name: &str, unit: &str| Series {
            chart: chart.to_owned(),
            name: name.to_owned(),
            unit: unit.to_owned(),
            values: Vec::new(),
        };
        let throughput = ["sent", "acknowledged", "published"].map(|name| series("throughput", name, "1/s"));
        let latency = Kind::ALL.iter().flat_map(|kind| ["p50", "p99"].map(|which| format!("{} {which}", kind.name())));
        let latency = latency.map(|name| series("latency", &name, "ms"));
        let backlog = ["packets topic", "acknowledged, not published"].map(|name| series("backlog", name, "records"));
        let names: Vec<_> = resources.names().collect();
        let cpu = names.iter().map(|name| series("cpu", name, "cores"));
        let rss = names.iter().map(|name| series("rss", name, "MB"));
        let files = names.iter().map(|name| series("files", name, "descriptors"));
        let threads = names.iter().map(|name| series("threads", name, "threads"));
        let errors = [series("errors", "refused or failed", "1/s")];
        let load = throughput.into_iter().chain(latency).chain(backlog).chain(errors);
        Self(load.chain(cpu).chain(rss).chain(files).chain(threads).collect())
    }

    fn add(&mut self, values: &BTreeMap<String, f64>, looks: &[Option<Look>]) {
        let [mut cpu, mut rss, mut files, mut threads] = [(); 4].map(|()| looks.iter().copied());
        for series in &mut self.0 {
            let value = match series.chart.as_str() {
                "cpu" => cpu.next().flatten().map(|look| look.cores),
                "rss" => rss.next().flatten().map(|look| look.rss as f64 / 1e6),
                "files" => files.next().flatten().and_then(|look| look.files).map(|files| files as f64),
                "threads" => threads.next().flatten().map(|look| look.threads as f64),
                _ => values.get(&series.name).copied(),
            };
            series.values.push(value);
        }
    }
}

/// The curves as CSV: one line a sample, one column a curve, named `chart: name (unit)`.
pub fn csv(timeline: &summary::Timeline) -> String {
    let mut text = String::from("seconds");
    for series in &timeline.series {
        let name = format!("{}: {} ({})", series.chart, series.name, series.unit);
        // Writing to a String cannot fail.
        let _ = write!(text, ",\"{}\"", name.replace('"', "\"\""));
    }
    text.push('\n');
    let samples = timeline.series.iter().map(|series| series.values.len()).max().unwrap_or_default();
    for sample in 0..samples {
        let _ = write!(text, "{}", sample as f64 * timeline.interval);
        for series in &timeline.series {
            let value = series.values.get(sample).copied().flatten();
            text.push(',');
            if let Some(value) = value {
                let _ = write!(text, "{value:.3}");
            }
        }
        text.push('\n');
    }
    text
}

/// Writes the curves to `timeline.csv` in `folder`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_csv(timeline: &summary::Timeline, folder: &Path) -> Result<()> {
    let path = folder.join("timeline.csv");
    std::fs::write(&path, csv(timeline)).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_a_column_and_a_gap_is_empty() {
        let series = |name: &str, values: &[Option<f64>]| Series {
            chart: "latency".to_owned(),
            name: name.to_owned(),
            unit: "ms".to_owned(),
            values: values.to_vec(),
        };
        let timeline = summary::Timeline {
            interval: 1.0,
            series: vec![series("ack, p50", &[Some(1.5), None]), series("topic p50", &[None, Some(20.0)])],
            events: Vec::new(),
        };
        let expected = "seconds,\"latency: ack, p50 (ms)\",\"latency: topic p50 (ms)\"\n0,1.500,\n1,,20.000\n";
        assert_eq!(csv(&timeline), expected);
    }

    #[test]
    fn a_long_run_has_longer_intervals() {
        assert_eq!(interval(Duration::from_secs(60)), Duration::from_secs(1));
        assert_eq!(interval(Duration::from_secs(7200)), Duration::from_secs(12));
    }
}
