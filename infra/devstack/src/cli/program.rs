//! A program of the same build, run for its result.

use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::home::Home;
use super::state::{Endpoints, variables};

/// Runs `program`, whose remarks go to standard error and which finds `regions` in its environment: whether it succeeded, and the last
/// document it wrote, if any.
///
/// # Errors
/// If it is not there, is ended by a signal, or writes something else than JSON.
pub(crate) async fn ask(
    home: &Home,
    program: &str,
    regions: &[Endpoints],
    line: &[&str],
) -> anyhow::Result<(bool, Value)> {
    let path = home.program(program);
    let mut command = Command::new(&path);
    command
        .args(["--output", "json"])
        .args(line)
        .envs(variables(regions))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.kill_on_drop(true).output().await.with_context(|| path.display().to_string())?;
    // A signal leaves no word on standard error.
    ensure!(output.status.code().is_some(), "{program} has ended: {}", output.status);
    let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let last = documents.last().transpose().with_context(|| format!("{program} writes no JSON"))?;
    Ok((output.status.success(), last.unwrap_or_default()))
}
