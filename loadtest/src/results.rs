//! The folder a run leaves behind: `summary.json`, and beside it an interval log of every latency.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, IntervalLogWriterBuilder, LogEntry};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::summary::{Percentiles, SCHEMA, Summary};

/// The summary's file name.
pub const SUMMARY: &str = "summary.json";

/// A year: interval logs whose times are this far before their start time count from it, as the Java reader has it.
const YEAR: f64 = 365.0 * 86_400.0;

/// One run, as read from its folder.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The folder's name, or the scenario's.
    pub name: String,
    /// What the run found.
    pub summary: Summary,
    /// Every latency by its name, interval by interval.
    pub latencies: BTreeMap<String, Vec<Interval>>,
}

/// What was measured in one interval of an interval log.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Seconds since the measured part began.
    pub start: f64,
    /// Its length, in seconds.
    pub seconds: f64,
    /// Latencies, in microseconds.
    pub histogram: Histogram<u64>,
}

impl Results {
    /// Reads `folder`'s summary and every `.hlog` beside it.
    ///
    /// # Errors
    /// When the summary is missing, of a later version or unreadable, or an interval log is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(SUMMARY);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let summary: Summary =
            serde_json::from_slice(&text).with_context(|| format!("{} is no summary", path.display()))?;
        ensure!(
            summary.schema <= SCHEMA,
            "{}: schema = {}, this release reads up to {SCHEMA}",
            path.display(),
            summary.schema
        );
        let began = began(&summary);
        let mut latencies: BTreeMap<String, Vec<Interval>> = BTreeMap::new();
        for log in files(folder)?.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "hlog")) {
            for (name, interval) in read_log(&log, began).with_context(|| format!("cannot read {}", log.display()))? {
                latencies.entry(name).or_default().push(interval);
            }
        }
        for intervals in latencies.values_mut() {
            intervals.sort_by(|a, b| a.start.total_cmp(&b.start));
        }
        let name = folder.file_name().map_or(summary.scenario.clone(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, summary, latencies })
    }

    /// Reads `folder` if it is a run's, else every run in the folders right under it, by name.
    ///
    /// # Errors
    /// As [`Results::read`], and when there is no run at all.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        if folder.join(SUMMARY).exists() {
            return Ok(vec![Self::read(folder)?]);
        }
        let runs: Vec<_> = files(folder)?.into_iter().filter(|path| path.join(SUMMARY).exists()).collect();
        ensure!(!runs.is_empty(), "{} has no {SUMMARY}, nor has a folder in it", folder.display());
        runs.iter().map(|run| Self::read(run)).collect()
    }

    /// Writes the summary and one interval log for each latency.
    ///
    /// # Errors
    /// When the folder cannot be made or a file not be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_summary(folder, &self.summary)?;
        let began = began(&self.summary).unwrap_or_default();
        for (name, intervals) in &self.latencies {
            let log = interval_log(name, SystemTime::UNIX_EPOCH + seconds(began), intervals)?;
            write_file(&folder.join(format!("{name}.hlog")), &log)?;
        }
        Ok(())
    }

    /// The whole of the latency `name`; `None` if it was not measured.
    pub fn total(&self, name: &str) -> Option<Histogram<u64>> {
        total(self.latencies.get(name)?)
    }
}

/// Writes `summary.json` into `folder`, which is made if it is not there.
///
/// # Errors
/// When the folder cannot be made or the file not be written.
pub fn write_summary(folder: &Path, summary: &Summary) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut json = serde_json::to_vec_pretty(summary)?;
    json.push(b'\n');
    write_file(&folder.join(SUMMARY), &json)
}

/// All intervals as one distribution.
pub fn total(intervals: &[Interval]) -> Option<Histogram<u64>> {
    let (first, rest) = intervals.split_first()?;
    let mut total = first.histogram.clone();
    total.auto(true);
    // Cannot fail: it grows to whatever it is given.
    rest.iter().try_for_each(|interval| total.add(&interval.histogram)).ok()?;
    Some(total)
}

/// The percentiles a summary holds, from a distribution in microseconds.
pub fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Percentiles {
        count: histogram.len(),
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1e3,
    }
}

/// When the measured part began, in seconds since the epoch.
pub fn began(summary: &Summary) -> Option<f64> {
    let began = OffsetDateTime::parse(&summary.started, &Rfc3339).ok()?;
    Some(began.unix_timestamp_nanos() as f64 / 1e9)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn interval_log(name: &str, began: SystemTime, intervals: &[Interval]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!("latency {name}, in microseconds"))
        .with_base_time(began)
        .with_start_time(began)
        .begin_log_with(&mut bytes, &mut serializer)?;
    for Interval { start, seconds: length, histogram } in intervals {
        log.write_histogram(histogram, seconds(*start), seconds(*length), None).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(bytes)
}

/// Every interval of a log with its tag, or the file's name where it has none.
fn read_log(path: &Path, began: Option<f64>) -> Result<Vec<(String, Interval)>> {
    let log = fs::read(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let (mut start_time, mut base_time) = (None, None);
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(&log) {
        match entry {
            Ok(LogEntry::StartTime(at)) => start_time = Some(at.as_secs_f64()),
            Ok(LogEntry::BaseTime(at)) => base_time = Some(at.as_secs_f64()),
            Ok(LogEntry::Interval(entry)) => {
                let name = entry.tag().map_or(stem.clone(), |tag| tag.as_str().into());
                let at = entry.start_timestamp().as_secs_f64();
                let base = base_time.or(start_time.filter(|start| at < start - YEAR)).unwrap_or(0.0);
                // Without any time of day the log counts from its own beginning.
                let zero = if base + at > YEAR { began.or(start_time).unwrap_or(base + at) } else { 0.0 };
                let bytes = BASE64_STANDARD.decode(entry.encoded_histogram()).context("an interval is not base64")?;
                let histogram = Deserializer::new()
                    .deserialize(&mut &bytes[..])
                    .map_err(|error| anyhow!("an interval holds no histogram: {error}"))?;
                let start = ((base + at - zero) * 1e3).round().max(0.0) / 1e3;
                intervals
                    .push((name.into_owned(), Interval { start, seconds: entry.duration().as_secs_f64(), histogram }));
            }
            Err(error) => bail!("it is no interval log: {error:?}"),
        }
    }
    Ok(intervals)
}

/// What is in `folder`, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut histogram = Histogram::new(3).unwrap();
        histogram.record_n(1500, 7).unwrap();
        let interval = |start| Interval { start, seconds: 1.0, histogram: histogram.clone() };
        let summary = Summary {
            schema: SCHEMA,
            scenario: "steady".to_owned(),
            started: "2026-11-24T15:00:00.25Z".to_owned(),
            ..Summary::default()
        };
        let latencies = [("ack".to_owned(), vec![interval(0.0), interval(1.0)])].into();
        Results { name: "steady".to_owned(), summary, latencies }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let written = results();
        written.write(&folder.path().join("steady")).unwrap();
        let [read] = &Results::read_all(folder.path()).unwrap()[..] else { panic!("one run") };
        assert_eq!((&read.name, &read.summary), (&written.name, &written.summary));
        let starts: Vec<_> = read.latencies["ack"].iter().map(|interval| interval.start).collect();
        assert_eq!(starts, [0.0, 1.0]);
        assert_eq!(read.total("ack").unwrap(), written.total("ack").unwrap());
        assert_eq!(percentiles(&read.total("ack").unwrap()).count, 14);
    }

    #[test]
    fn tags_name_the_latencies_of_a_shared_log() {
        let folder = tempfile::tempdir().unwrap();
        results().write(folder.path()).unwrap();
        let log = fs::read_to_string(folder.path().join("ack.hlog")).unwrap();
        let tagged: Vec<_> = log
            .lines()
            .map(|line| if line.starts_with('#') { line.to_owned() } else { format!("Tag=topic,{line}") })
            .collect();
        fs::write(folder.path().join("all.hlog"), tagged.join("\n") + "\n").unwrap();
        fs::remove_file(folder.path().join("ack.hlog")).unwrap();
        assert_eq!(Results::read(folder.path()).unwrap().latencies["topic"].len(), 2);
    }

    #[test]
    fn a_later_format_and_a_damaged_log_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        results().write(folder.path()).unwrap();
        fs::write(folder.path().join("ack.hlog"), "1.0,1.0,1.5,bm9wZQ==\n").unwrap();
        assert!(format!("{:#}", Results::read(folder.path()).unwrap_err()).contains("ack.hlog"));
        fs::write(folder.path().join(SUMMARY), r#"{"schema": 99}"#).unwrap();
        assert!(format!("{:#}", Results::read(folder.path()).unwrap_err()).contains("schema = 99"));
    }
}
