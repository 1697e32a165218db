//! What processes cost while a load runs: CPU time, resident memory, files and threads, from `/proc`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use procfs::process::Process;

use crate::summary::Usage;

/// A process to watch; on the command line `name=pid`. One that is restarted has another id afterwards.
#[derive(Clone)]
pub struct Watched {
    /// What reports call it.
    pub name: String,
    pid: Arc<dyn Fn() -> Option<i32> + Send + Sync>,
}

impl Watched {
    /// A process whose id `pid` tells, as long as it runs.
    pub fn new(name: &str, pid: impl Fn() -> Option<i32> + Send + Sync + 'static) -> Self {
        Self { name: name.to_owned(), pid: Arc::new(pid) }
    }

    /// This process.
    pub fn own() -> Self {
        Self::new("loadtest", || Some(std::process::id().cast_signed()))
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}", self.name, (self.pid)())
    }
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected name=pid, as in ingest=4711");
        let (name, pid) = text.split_once('=').ok_or_else(wrong)?;
        match pid.parse() {
            Ok(pid) if pid > 0 && !name.is_empty() => Ok(Self::new(name, move || Some(pid))),
            _ => Err(wrong()),
        }
    }
}

/// What a process did between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Look {
    /// Cores it kept busy.
    pub cores: f64,
    /// Resident memory now, in bytes.
    pub rss: u64,
    /// Open file descriptors now; another user's cannot be counted.
    pub files: Option<u64>,
    /// Threads now.
    pub threads: u64,
}

/// Follows processes over restarts.
#[derive(Debug)]
pub struct Resources {
    looked: Instant,
    processes: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    watched: Watched,
    pid: Option<i32>,
    /// CPU seconds of the current incarnation at the last look.
    cpu: f64,
    /// Of all incarnations, since the beginning.
    total: f64,
    peak_rss: u64,
}

impl Resources {
    /// Begins now.
    pub fn new(watched: &[Watched]) -> Self {
        let follow = |watched: &Watched| {
            let pid = (watched.pid)();
            let cpu = pid.and_then(read).map_or(0.0, |reading| reading.cpu);
            Followed { watched: watched.clone(), pid, cpu, total: 0.0, peak_rss: 0 }
        };
        Self { looked: Instant::now(), processes: watched.iter().map(follow).collect() }
    }

    /// The processes' names, in the order of every look.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.processes.iter().map(|process| process.watched.name.as_str())
    }

    /// What each did since the last look; `None` for one that does not run.
    pub fn look(&mut self) -> Vec<Option<Look>> {
        let seconds = self.looked.elapsed().as_secs_f64().max(1e-3);
        self.looked = Instant::now();
        self.processes.iter_mut().map(|process| process.look(seconds)).collect()
    }

    /// What each used since the beginning, up to the last look; `records` is what was worked on.
    pub fn usage(&self, records: u64) -> Vec<Usage> {
        let usage = |process: &Followed| Usage {
            name: process.watched.name.clone(),
            cpu_seconds: process.total,
            cpu_seconds_per_100k: process.total * 1e5 / records.max(1) as f64,
            peak_rss_bytes: process.peak_rss,
        };
        self.processes.iter().filter(|process| process.peak_rss > 0).map(usage).collect()
    }
}

impl Followed {
    fn look(&mut self, seconds: f64) -> Option<Look> {
        let pid = (self.watched.pid)()?;
        let reading = read(pid)?;
        if self.pid != Some(pid) {
            (self.pid, self.cpu) = (Some(pid), 0.0);
        }
        let used = reading.cpu - self.cpu;
        self.cpu = reading.cpu;
        self.total += used;
        self.peak_rss = self.peak_rss.max(reading.peak_rss);
        Some(Look { cores: used / seconds, rss: reading.rss, files: reading.files, threads: reading.threads })
    }
}

struct Reading {
    cpu: f64,
    rss: u64,
    /// The kernel's high-water mark since the process started (`VmHWM`): unlike sampling it misses no peak.
    peak_rss: u64,
    files: Option<u64>,
    threads: u64,
}

fn read(pid: i32) -> Option<Reading> {
    let process = Process::new(pid).ok()?;
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    Some(Reading {
        cpu: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        rss: status.vmrss? * 1024,
        peak_rss: status.vmhwm? * 1024,
        files: process.fd_count().ok().map(|count| count as u64),
        threads: status.threads,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::*;

    #[test]
    fn a_watched_process_is_a_name_and_a_pid() {
        let watched: Watched = "ingest=12".parse().unwrap();
        assert_eq!(format!("{watched:?}"), "ingest=Some(12)");
        for wrong in ["ingest", "=12", "ingest=", "ingest=x", "ingest=-1", "ingest=0"] {
            assert!(wrong.parse::<Watched>().unwrap_err().contains("name=pid"), "{wrong}");
        }
    }

    #[test]
    fn this_process_uses_memory_and_its_cpu_adds_up() {
        let mut resources = Resources::new(&[Watched::own()]);
        let look = resources.look()[0].unwrap();
        assert!(look.rss > 0 && look.cores >= 0.0 && look.files > Some(2) && look.threads > 0);
        let usage = resources.usage(50_000).remove(0);
        assert!((usage.cpu_seconds_per_100k - 2.0 * usage.cpu_seconds).abs() < 1e-9);
        assert!(usage.peak_rss_bytes >= look.rss / 2);
    }

    #[test]
    fn a_process_that_is_away_uses_nothing() {
        let pid = Arc::new(AtomicI32::new(i32::MAX));
        let told = pid.clone();
        let mut resources = Resources::new(&[Watched::new("service", move || Some(told.load(Ordering::Relaxed)))]);
        assert_eq!(resources.look(), [None]);
        assert!(resources.usage(1).is_empty());
        pid.store(std::process::id().cast_signed(), Ordering::Relaxed);
        assert!(resources.look()[0].is_some());
    }
}
