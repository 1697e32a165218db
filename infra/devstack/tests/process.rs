//! Any program as a node: its log, its end, and that it does not outlive who started it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coderelay_devstack::{Error, Launch, Probe, Process, Stack};

const NO_ENVS: [(&str, &str); 0] = [];

fn shell(name: &str, script: &str, dir: &Path) -> Launch {
    Launch::new(name, "sh", dir).args(["-c", script])
}

#[tokio::test]
async fn a_process_that_dies_early_is_reported_with_its_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let unreachable = Probe::Http { url: "http://127.0.0.1:1/readyz".into() };
    let launch = shell("broken", "echo the disk is on fire >&2; exit 3", dir.path()).ready_when(unreachable);
    let since = Instant::now();
    let error = Process::launch(launch).unwrap().ready().await.unwrap_err();
    assert!(since.elapsed() < Duration::from_secs(20));
    assert!(matches!(&error, Error::Died { status, .. } if status.code() == Some(3)), "{error}");
    assert!(error.to_string().contains("the disk is on fire"), "{error}");
}

#[tokio::test]
async fn a_missing_program_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = Process::spawn("ghost", "/nowhere/ghost", ["x"], NO_ENVS, dir.path()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/ghost"), "{error}");
}

#[tokio::test]
async fn a_restart_appends_to_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let envs = [("GREETING", "hello")];
    let process = Process::spawn("greeter", "sh", ["-c", "echo $GREETING"], envs, dir.path()).unwrap();
    assert!(process.wait().await.success());
    process.restart().await.unwrap();
    process.wait().await;
    let greetings = process.log_tail(10).lines().filter(|line| *line == "hello").count();
    assert_eq!(greetings, 2);
    assert!(matches!(process.pause().await, Err(Error::NotRunning { .. })));
}

#[tokio::test]
async fn sigterm_reaches_a_paused_process_and_sigkill_a_stubborn_one() {
    let dir = tempfile::tempdir().unwrap();
    let polite = Process::launch(shell("polite", "exec sleep 1000", dir.path())).unwrap();
    polite.pause().await.unwrap();
    assert!(!polite.terminate().await.unwrap().success());

    let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let stubborn = Process::launch(shell("stubborn", script, dir.path())).unwrap();
    while !stubborn.log_tail(1).contains("ready") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stubborn.stop(Duration::from_millis(200)).await.unwrap();
    assert!(!stubborn.is_running());
}

#[tokio::test]
async fn on_a_full_disk_no_file_grows_until_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; while head -c 40000 /dev/zero >>data; do sleep 0.01; done; exit 4";
    let writer = Process::launch(shell("writer", script, dir.path())).unwrap();
    writer.fill_disk().await.unwrap();
    assert_eq!(writer.wait().await.code(), Some(4), "{}", writer.log_tail(5));
    let size = || std::fs::metadata(dir.path().join("data")).unwrap().len();
    let full = size();
    assert!(matches!(writer.fill_disk().await, Err(Error::NotRunning { .. })));

    writer.start().unwrap();
    while size() <= full.max(64 * 1024) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_process_outlives_the_thread_that_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let launched = std::thread::spawn(move || Process::launch(shell("lasting", "exec sleep 1000", &path)).unwrap());
    let process = launched.join().unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(300), process.wait()).await;
    assert!(ended.is_err(), "ended with the thread: {ended:?}");
}

#[test]
fn nothing_survives_the_parents_death() {
    let this = std::env::current_exe().unwrap();
    let mut parent = Command::new(this)
        .args(["--ignored", "--exact", "parent_that_is_killed", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pids: Vec<u32> = lines
        .filter_map(|line| line.split_once("child ").map(|(_, pid)| pid.trim().parse().unwrap()))
        .take(2)
        .collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| runs(*pid)));

    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|pid| runs(*pid)) {
        assert!(Instant::now() < deadline, "a child of a killed parent still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test: the parent of [`nothing_survives_the_parents_death`].
#[tokio::test]
#[ignore = "runs for ever; another test starts and kills it"]
async fn parent_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::launch(shell("child", "exec sleep 1000", dir.path())).unwrap();
    let stack = Stack::builder().start().await.unwrap();
    println!("\nchild {}\nchild {}", process.pid(), stack.broker(0).pid());
    std::future::pending::<()>().await;
}

/// Whether the process exists and is no zombie that only waits to be collected.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
