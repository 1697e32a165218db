//! Where and when a figure was measured; without it a figure means nothing.

use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context, Result};
use procfs::Current as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The place, the time and the program of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// CPU model as the kernel names it.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// UTC date, `YYYY-MM-DD`.
    pub date: String,
    /// `git describe` of the working directory, `-dirty` where it differs from the commit.
    pub commit: String,
    /// The command line.
    pub command: String,
}

impl Origin {
    /// Reads all of it from this machine.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn here() -> Result<Self> {
        let cpus = procfs::CpuInfo::current().context("cannot read /proc/cpuinfo")?;
        let memory = procfs::Meminfo::current().context("cannot read /proc/meminfo")?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        Ok(Self {
            cpu: cpus.model_name(0).unwrap_or("unknown").to_owned(),
            cores: cpus.num_cores(),
            memory_bytes: memory.mem_total,
            kernel: release.trim().to_owned(),
            date: OffsetDateTime::now_utc().date().to_string(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            command: command(),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{}, {} cores, {gib:.0} GiB, Linux {}; {}, commit {}; `{}`",
            self.cpu, self.cores, self.kernel, self.date, self.commit, self.command
        )
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !name.is_empty()).then_some(name)
}

/// The command line with the program's name instead of its path.
fn command() -> String {
    let arguments = env::args().skip(1);
    std::iter::once(env!("CARGO_PKG_NAME").to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_names_machine_date_and_command() {
        let origin = Origin::here().unwrap();
        assert!(origin.cores > 0 && origin.memory_bytes > 0);
        assert_eq!(origin.date.len(), 10, "{}", origin.date);
        assert!(origin.to_string().contains("`loadtest"), "{origin}");
    }
}
