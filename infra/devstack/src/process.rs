//! One program of the stack: started, observed, and treated badly on purpose.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::progress::{Event, Observer};
use crate::readiness::Probe;

/// How long a process may take to leave after SIGTERM.
const TERMINATION: Duration = Duration::from_secs(60);
/// How long a process may take until it is ready. Generous: test machines are busy, and a dead process is noticed at once.
const READINESS: Duration = Duration::from_secs(180);
/// How long a dropped process is waited for; the kernel takes some milliseconds to free a gigabyte.
const BURIAL: Duration = Duration::from_secs(2);
/// Pause between two questions whether a process is ready.
const QUESTION_INTERVAL: Duration = Duration::from_millis(100);
/// Lines of a log that an error quotes.
const TAIL_LINES: usize = 20;
/// How far files still grow on a disk that is full.
const LAST_BLOCKS: u64 = 64 * 1024;

/// A running (or killed, or paused) program with its own folder and log. Dropping it kills the program.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    log: PathBuf,
    incarnation: Mutex<Incarnation>,
}

/// One life of the program; a restart begins the next.
#[derive(Debug, Clone)]
struct Incarnation {
    pid: Pid,
    started: SystemTime,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts `program` as `name` in the folder `dir`; see [`Launch::new`]. Does not wait until it is ready.
    ///
    /// # Errors
    /// If the folder or the process cannot be made.
    pub fn spawn<A: Into<OsString>, K: Into<OsString>, V: Into<OsString>>(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
        envs: impl IntoIterator<Item = (K, V)>,
        dir: impl Into<PathBuf>,
    ) -> Result<Self> {
        Self::launch(Launch::new(name, program, dir).args(args).envs(envs))
    }

    /// Starts a program. Does not wait until it is [`ready`](Self::ready).
    ///
    /// # Errors
    /// If the folder or the process cannot be made.
    pub fn launch(launch: Launch) -> Result<Self> {
        let log = launch.log_path();
        let incarnation = Mutex::new(begin(&launch, &log)?);
        Ok(Self { launch, log, incarnation })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its working directory.
    pub fn dir(&self) -> &Path {
        &self.launch.dir
    }

    /// The file its standard output and error go to. Restarts append.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// The question by which it is told whether it is ready.
    pub fn probe(&self) -> &Probe {
        &self.launch.probe
    }

    /// The process id of the current or last incarnation.
    pub fn pid(&self) -> u32 {
        self.current().pid.as_raw().unsigned_abs()
    }

    /// When the current or last incarnation was started.
    pub fn started(&self) -> SystemTime {
        self.current().started
    }

    /// Whether it has not ended. A paused process is running.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.current().exit.borrow()
    }

    /// Waits until it has ended by itself or by another's doing.
    pub async fn wait(&self) -> ExitStatus {
        wait(self.current()).await
    }

    /// SIGKILL, and waits until it is gone. No error if it was gone before.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub async fn kill(&self) -> Result<ExitStatus> {
        let incarnation = self.current();
        self.signal(&incarnation, Signal::SIGKILL)?;
        Ok(wait(incarnation).await)
    }

    /// SIGTERM, and waits until it is gone. A paused process goes on first. No error if it was gone before.
    ///
    /// # Errors
    /// [`Error::StillRunning`] after 60 s.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.terminate_within(TERMINATION).await
    }

    /// SIGTERM as [`terminate`](Self::terminate) does, then SIGKILL for a process that is not gone after `grace`.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        match self.terminate_within(grace).await {
            Err(Error::StillRunning { .. }) => self.kill().await,
            ended => ended,
        }
    }

    async fn terminate_within(&self, grace: Duration) -> Result<ExitStatus> {
        let incarnation = self.current();
        self.signal(&incarnation, Signal::SIGTERM)?;
        self.signal(&incarnation, Signal::SIGCONT)?;
        tokio::time::timeout(grace, wait(incarnation))
            .await
            .map_err(|_| Error::StillRunning { name: self.launch.name.clone(), waited: grace })
    }

    /// SIGSTOP: it stays, holds its connections and does nothing, like a machine that hangs.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if it has ended.
    #[allow(clippy::unused_async, reason = "the verbs of a node are called alike")]
    pub async fn pause(&self) -> Result<()> {
        self.signal_running(Signal::SIGSTOP)
    }

    /// SIGCONT after a [`pause`](Self::pause).
    ///
    /// # Errors
    /// [`Error::NotRunning`] if it has ended.
    #[allow(clippy::unused_async, reason = "the verbs of a node are called alike")]
    pub async fn resume(&self) -> Result<()> {
        self.signal_running(Signal::SIGCONT)
    }

    /// Takes the room on its disk away, for the rest of this incarnation: no file grows beyond 64 KiB, and writes that would fail or end
    /// short (`RLIMIT_FSIZE`, setrlimit(2)). The error is `EFBIG`, a full disk's `ENOSPC`; to a Java program both are an `IOException`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if it has ended.
    #[allow(clippy::unused_async, reason = "the verbs of a node are called alike")]
    pub async fn fill_disk(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.running()?.pid.as_raw());
        let limit = Rlimit { current: Some(LAST_BLOCKS), maximum: None };
        match prlimit(pid, Resource::Fsize, limit) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(self.not_running()),
            Err(errno) => Err(Error::io(&self.launch.program)(errno.into())),
        }
    }

    /// Starts it again with the same folder, ports and arguments, and does not wait until it is ready. Nothing if it runs.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn start(&self) -> Result<()> {
        let mut incarnation = self.lock();
        if incarnation.exit.borrow().is_some() {
            *incarnation = begin(&self.launch, &self.log)?;
        }
        Ok(())
    }

    /// Terminates it if it runs, starts it again and waits until it is ready. A broker without a quorum never is:
    /// to bring several back [`start`](Self::start) them all first, then wait for each.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate) and [`ready`](Self::ready).
    pub async fn restart(&self) -> Result<()> {
        if self.is_running() {
            self.terminate().await?;
        }
        self.start()?;
        self.ready().await
    }

    /// Waits until it answers as it should; see [`Launch::ready_when`].
    ///
    /// # Errors
    /// [`Error::Died`] as soon as it has ended, [`Error::NotReady`] after 180 s.
    pub async fn ready(&self) -> Result<()> {
        let since = Instant::now();
        let incarnation = self.current();
        let mut reason = String::from("not asked yet");
        let answers = async {
            while let Err(answer) = self.launch.probe.ask().await {
                reason = answer;
                tokio::time::sleep(QUESTION_INTERVAL).await;
            }
        };
        tokio::select! {
            // First, so that a server that was there before on the same port is not taken for this one.
            biased;
            status = wait(incarnation) => return Err(self.died(status)),
            answered = tokio::time::timeout(READINESS, answers) => if answered.is_ok() { return Ok(()) },
        }
        let (name, log, tail) = (self.launch.name.clone(), self.log.clone(), self.log_tail(TAIL_LINES));
        Err(Error::NotReady { name, waited: since.elapsed(), reason, log, tail })
    }

    /// [`ready`](Self::ready), with a word to `observer` before and after.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub async fn ready_observed(&self, observer: &Observer) -> Result<()> {
        let since = Instant::now();
        self.tell_starting(observer);
        self.ready().await?;
        observer.tell(&Event::Ready { name: self.launch.name.clone(), after: since.elapsed() });
        Ok(())
    }

    /// Tells `observer` that it was started.
    pub(crate) fn tell_starting(&self, observer: &Observer) {
        let name = self.launch.name.clone();
        observer.tell(&Event::Starting { name, pid: self.pid(), log: self.log.clone() });
    }

    /// Asks once whether it is ready.
    ///
    /// # Errors
    /// The reason why it is not.
    pub async fn is_ready(&self) -> Result<(), String> {
        match self.exit_status() {
            Some(status) => Err(format!("ended ({status})")),
            None => self.launch.probe.ask().await,
        }
    }

    /// The error that says how it ended, with the last lines of its log.
    pub fn died(&self, status: ExitStatus) -> Error {
        let (name, log, tail) = (self.launch.name.clone(), self.log.clone(), self.log_tail(TAIL_LINES));
        Error::Died { name, status, log, tail }
    }

    fn lock(&self) -> MutexGuard<'_, Incarnation> {
        self.incarnation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Incarnation {
        self.lock().clone()
    }

    fn signal_running(&self, signal: Signal) -> Result<()> {
        self.signal(&self.running()?, signal)
    }

    fn running(&self) -> Result<Incarnation> {
        let incarnation = self.current();
        let ended = incarnation.exit.borrow().is_some();
        if ended { Err(self.not_running()) } else { Ok(incarnation) }
    }

    fn not_running(&self) -> Error {
        Error::NotRunning { name: self.launch.name.clone() }
    }

    fn signal(&self, incarnation: &Incarnation, signal: Signal) -> Result<()> {
        // A process that was waited for may have left its id to another.
        if incarnation.exit.borrow().is_some() {
            return Ok(());
        }
        match kill(incarnation.pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::io(&self.launch.program)(errno.into())),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let incarnation = self.current();
        // Nobody is left to tell of an error; the parent-death signal is the second net.
        let _ = self.signal(&incarnation, Signal::SIGKILL);
        // Its folder may be removed next, and its port taken.
        let deadline = Instant::now() + BURIAL;
        while incarnation.exit.borrow().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn begin(launch: &Launch, log: &Path) -> Result<Incarnation> {
    // Each time: a region that is rebuilt may have lost its folders.
    fs::create_dir_all(&launch.dir).map_err(Error::io(&launch.dir))?;
    let started = SystemTime::now();
    let mut child = launch.spawn(log)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (ended, exit) = watch::channel(None);
    thread::spawn(move || {
        if let Ok(status) = child.wait() {
            ended.send_replace(Some(status));
        }
    });
    Ok(Incarnation { pid, started, exit })
}

async fn wait(mut incarnation: Incarnation) -> ExitStatus {
    loop {
        if let Some(status) = *incarnation.exit.borrow_and_update() {
            return status;
        }
        if incarnation.exit.changed().await.is_err() {
            // The thread that waits for the child ends only after it has told how the child ended.
            std::future::pending::<()>().await;
        }
    }
}

/// The last `lines` lines of the file at `path`; empty if it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 64 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(WINDOW);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
