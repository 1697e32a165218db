//! What expired goes back to where it came from, as an operator sends it: with `relayctl dlq replay`.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::spawn_blocking;

use super::region::Region;

/// Records a second: so few that a single processor of a debug build keeps up, or all would expire again.
const RATE: &str = "250";

/// What `relayctl` says of a replay.
#[derive(Deserialize)]
struct Tally {
    replayed: u64,
}

/// Sends every record of `region` back that has expired so far, also those that were sent back before; or only those that have been
/// written `since`. How many.
///
/// # Errors
/// When `relayctl` fails; some may have been sent back.
pub async fn replay(region: &Region<'_>, since: Option<OffsetDateTime>) -> Result<u64> {
    let identity = &region.identity;
    let mut command = Command::new(&identity.programs.relayctl);
    command.args(["--output", "json", "--kafka", &region.stack.bootstrap_servers()]);
    command.args(["--topic-suffix", identity.topic_suffix.as_str()]);
    command.args(["dlq", "replay", "--yes", "--reason", "expired", "--rate", RATE]);
    if let Some(since) = since {
        command.args(["--since", &since.format(&Rfc3339)?]);
    }
    command.stderr(log(&identity.folder)?).stdin(Stdio::null());
    let output = spawn_blocking(move || command.output()).await?.context("relayctl does not start")?;
    ensure!(output.status.success(), "relayctl dlq replay: {}", output.status);
    let tally: Tally = serde_json::from_slice(&output.stdout).context("relayctl dlq replay says no JSON")?;
    Ok(tally.replayed)
}

fn log(folder: &Path) -> Result<File> {
    let path = folder.join("relayctl.log");
    File::options().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}
