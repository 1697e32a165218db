//! What expired goes back to where it came from, as an operator sends it: with `relayctl dlq replay`.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::region::Region;

/// Records a second: so few that none expires on its way.
const RATE: &str = "500";

/// What `relayctl` says of a replay.
#[derive(Deserialize)]
struct Tally {
    replayed: u64,
    repeats: u64,
}

/// Sends every record of `region` back that has expired so far, also those that were sent back before. How many dead letters there are of
/// such records.
///
/// # Errors
/// When `relayctl` fails; some may have been sent back.
pub async fn replay(region: &Region<'_>) -> Result<u64> {
    let identity = &region.identity;
    let mut command = Command::new(&identity.programs.relayctl);
    command.args(["--output", "json", "--kafka", &region.stack.bootstrap_servers()]);
    command.args(["--topic-suffix", identity.topic_suffix.as_str()]);
    command.args(["dlq", "replay", "--yes", "--reason", "expired", "--rate", RATE]);
    command.stderr(log(&identity.folder)?).stdin(Stdio::null());
    let output = spawn_blocking(move || command.output()).await?.context("relayctl does not start")?;
    ensure!(output.status.success(), "relayctl dlq replay: {}", output.status);
    let tally: Tally = serde_json::from_slice(&output.stdout).context("relayctl dlq replay says no JSON")?;
    Ok(tally.replayed + tally.repeats)
}

fn log(folder: &Path) -> Result<File> {
    let path = folder.join("relayctl.log");
    File::options().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}
