//! Two whole regions, one of which is lost: with its disks, so that it comes back, or without them, so that it is made again from the other.

#![allow(clippy::unwrap_used, reason = "a test")]

mod loss;
mod rebuild;
mod region;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use coderelay_runtime::CancellationToken;
use coderelay_runtime::config::{self, Sources};
use region::Region;
use relayctl::{Cli, Exit, Format, Output};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

/// How long both sides may take until they are equal: a mirror that is started again has to find out first that it must.
const PATIENCE: Duration = Duration::from_secs(180);

/// Two regions are as much as a machine holds: the tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Not a test: what runs in the processes of ingest that the test starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is an ingest, for the test here"]
async fn an_ingest() {
    if std::env::var_os("CODERELAY_GRPC__LISTEN").is_none() {
        return;
    }
    let sources = Sources { environment: std::env::vars().collect(), ..Sources::default() };
    ingest::run(config::load(&sources).unwrap(), CancellationToken::new()).await.unwrap();
}

/// Runs relayctl in this process: its exit code, and the last document it wrote.
async fn relayctl(line: &[&str]) -> (Exit, Value) {
    let written = NamedTempFile::new().unwrap();
    let cli = Cli::try_parse_from(["relayctl", "--output", "json"].iter().chain(line)).unwrap();
    let exit = relayctl::run(cli, &mut Output::to(Format::Json, written.reopen().unwrap())).await;
    let text = std::fs::read(written.path()).unwrap();
    let documents = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
    (exit, documents.map(Result::unwrap).last().unwrap_or_default())
}

/// Runs relayctl in this process, and adds what it writes to a file.
async fn receipts(line: &[&str], file: &Path) -> Exit {
    let file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    let cli = Cli::try_parse_from(["relayctl", "--output", "json"].iter().chain(line)).unwrap();
    relayctl::run(cli, &mut Output::to(Format::Json, file)).await
}

fn files(folder: &TempDir, prefix: &str, count: usize) {
    for n in 0..count {
        std::fs::write(folder.path().join(format!("{prefix}-{n}")), format!("{prefix} {n}")).unwrap();
    }
}

/// Waits until both regions have published and stored the same, `packets` of them.
async fn equal(regions: [&Region<'_>; 2], packets: usize) {
    let deadline = Instant::now() + PATIENCE;
    let addresses = regions.map(Region::address);
    let line = ["mirror", "verify", "--region", &addresses[0], "--region", &addresses[1], "--until", "2126-01-01"];
    loop {
        let (exit, report) = relayctl(&line).await;
        let complete = serde_json::json!([packets, packets]);
        if exit == Exit::Success && report["published"] == complete && report["stored"] == complete {
            return;
        }
        assert!(Instant::now() < deadline, "{report:#}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until both directions are well and nothing waits to be mirrored.
async fn caught_up(status: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (exit, directions) = relayctl(status).await;
        if exit == Exit::Success && directions[0]["behind"] == 0 && directions[1]["behind"] == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{directions:#}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
