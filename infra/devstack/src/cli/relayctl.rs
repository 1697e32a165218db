//! relayctl of the same build, run for its result.

use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;
use tokio::process::Command;

use super::home::Home;

/// Runs relayctl, whose remarks go to standard error: whether it succeeded, and the last document it wrote, if any.
///
/// # Errors
/// If it is not there, or writes something else than JSON.
pub(crate) async fn relayctl(home: &Home, line: &[&str]) -> anyhow::Result<(bool, Value)> {
    let program = home.program("relayctl");
    let mut command = Command::new(&program);
    command.args(["--output", "json"]).args(line).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = command.output().await.with_context(|| program.display().to_string())?;
    let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let last = documents.last().transpose().context("relayctl writes JSON")?;
    Ok((output.status.success(), last.unwrap_or_default()))
}
