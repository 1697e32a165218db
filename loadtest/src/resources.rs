//! What processes cost while a load runs: CPU time and peak memory, from `/proc`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use procfs::process::Process;
use serde::Serialize;

/// A process to watch, written `name=pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What the report calls it.
    pub name: String,
    /// Its process id.
    pub pid: i32,
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or_else(|| format!("{text:?} is not name=pid"))?;
        match pid.parse() {
            Ok(pid) if pid > 0 && !name.is_empty() => Ok(Self { name: name.to_owned(), pid }),
            _ => Err(format!("{text:?} is not name=pid")),
        }
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.pid)
    }
}

/// What one process used between [`Meter::start`] and [`Meter::stop`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// The watched process's name.
    pub name: String,
    /// User and system time of the measured span, in seconds.
    pub cpu_seconds: f64,
    /// `cpu_seconds` for every 100,000 records of the measured span.
    pub cpu_seconds_per_100k: f64,
    /// The kernel's high-water mark of resident memory since the process started (`VmHWM`), in bytes. It covers
    /// warm-up as well, and unlike sampling misses no peak.
    pub peak_rss_bytes: u64,
}

/// Readings of the watched processes at the beginning of a span.
#[derive(Debug)]
pub struct Meter(Vec<(Watched, f64)>);

impl Meter {
    /// Takes the first reading. This process is added as `loadtest`.
    ///
    /// # Errors
    /// When a watched process does not exist or may not be read.
    pub fn start(watched: &[Watched]) -> Result<Self> {
        let own = Watched { name: "loadtest".to_owned(), pid: std::process::id() as i32 };
        let readings = watched.iter().cloned().chain([own]).map(|process| {
            let cpu = cpu_seconds(&process)?;
            Ok((process, cpu))
        });
        Ok(Self(readings.collect::<Result<_>>()?))
    }

    /// Takes the second reading; `records` is what the span processed.
    ///
    /// # Errors
    /// When a watched process has gone: a figure without it would be wrong.
    pub fn stop(self, records: u64) -> Result<Vec<Usage>> {
        self.0
            .into_iter()
            .map(|(process, before)| {
                let cpu_seconds = cpu_seconds(&process)? - before;
                Ok(Usage {
                    cpu_seconds,
                    cpu_seconds_per_100k: cpu_seconds * 1e5 / records.max(1) as f64,
                    peak_rss_bytes: peak_rss(&process)?,
                    name: process.name,
                })
            })
            .collect()
    }
}

fn cpu_seconds(watched: &Watched) -> Result<f64> {
    let stat = Process::new(watched.pid).and_then(|process| process.stat());
    let stat = stat.with_context(|| format!("cannot read the CPU time of {watched}"))?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

fn peak_rss(watched: &Watched) -> Result<u64> {
    let status = Process::new(watched.pid).and_then(|process| process.status());
    let status = status.with_context(|| format!("cannot read the memory of {watched}"))?;
    status.vmhwm.map(|kib| kib * 1024).ok_or_else(|| anyhow!("{watched} has no VmHWM: it has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_process_is_a_name_and_a_pid() {
        assert_eq!("ingest=12".parse(), Ok(Watched { name: "ingest".to_owned(), pid: 12 }));
        for wrong in ["ingest", "=12", "ingest=", "ingest=x", "ingest=-1", "ingest=0"] {
            assert!(wrong.parse::<Watched>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn this_process_is_watched_by_default() {
        let usage = Meter::start(&[]).unwrap().stop(1).unwrap();
        assert_eq!(usage.len(), 1);
        assert!(usage[0].peak_rss_bytes > 0 && usage[0].cpu_seconds >= 0.0);
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        assert!(Meter::start(&["gone=2147483647".parse().unwrap()]).is_err());
    }
}
