//! How a program is to be run: its name, folder, arguments, and the question that tells whether it is ready.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::error::{Error, Result};
use crate::readiness::Probe;
use crate::spawner;

/// How a program is to be run: what [`Process::launch`] takes.
#[derive(Debug, Clone)]
pub struct Launch {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    pub(crate) dir: PathBuf,
    pub(crate) probe: Probe,
    inherit_output: bool,
    niceness: u8,
}

impl Launch {
    /// Runs `program` under the name `name`, with `dir` (created when missing) as working directory and `dir/<name>.log` as
    /// its log.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: dir.into(),
            probe: Probe::Running,
            inherit_output: false,
            niceness: 0,
        }
    }

    /// Appends arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets environment variables, on top of those of this process.
    #[must_use]
    pub fn envs(mut self, envs: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>) -> Self {
        self.envs.extend(envs.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// How the process is asked whether it is ready. Default: it is as soon as it runs.
    #[must_use]
    pub fn ready_when(mut self, probe: Probe) -> Self {
        self.probe = probe;
        self
    }

    /// Lets the process write to this process's output instead of a log.
    #[must_use]
    pub fn inherit_output(mut self) -> Self {
        self.inherit_output = true;
        self
    }

    /// Gives the process less of a CPU that others want too. For what stands behind the topic: a producer waits for ingest and the
    /// broker, nobody waits for the processor and the store, and in production these run on machines of their own.
    #[must_use]
    pub fn behind_the_topic(mut self) -> Self {
        self.niceness = 10;
        self
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Starts the program once; what it prints is appended to `log`.
    pub(crate) fn spawn(&self, log: &Path) -> Result<Child> {
        let is_path = self.program.components().count() > 1;
        if is_path && !self.program.exists() {
            return Err(Error::io(&self.program)(io::ErrorKind::NotFound.into()));
        }
        let mut command = spawner::bound_command("nice");
        command
            .arg(format!("--adjustment={}", self.niceness))
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.dir).stdin(Stdio::null());
        if !self.inherit_output {
            let mut file = File::options().create(true).append(true).open(log).map_err(Error::io(log))?;
            writeln!(file, "--- {}", self.command_line()).map_err(Error::io(log))?;
            let copy = file.try_clone().map_err(Error::io(log))?;
            command.stdout(file).stderr(copy);
        }
        spawner::spawn(command).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::MissingProgram { program: "setpriv".into(), install: "apt-get install -y util-linux" }
            }
            _ => Error::io(&self.program)(error),
        })
    }

    fn command_line(&self) -> String {
        let words = std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}
