//! `devstack status`: every process of the background stack, asked anew.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::home::Home;
use super::state::{Life, NodeState, Phase, State, variables};
use super::up::{AFRESH, report_dead};
use super::{Output, print};

/// Exit code when nothing runs, as `systemctl status` has it.
const NOT_RUNNING: u8 = 3;

/// What `--output json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    running: bool,
    ready: bool,
    /// Why the last start failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
    endpoints: BTreeMap<String, &'a str>,
    processes: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    pid: u32,
    addresses: &'a [String],
    ready: bool,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    log: &'a std::path::Path,
    /// The end of the log of one that died.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_tail: Option<&'a str>,
    /// How often its supervisor has started it again.
    #[serde(skip_serializing_if = "is_zero")]
    restarts: u32,
    /// Why it did so last.
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_reason: Option<&'a str>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(crate) async fn status(home: &Home, output: Output) -> anyhow::Result<ExitCode> {
    let owner = home.owner();
    let state = home.state().filter(|state| owner == Some(state.pid) || matches!(state.phase, Phase::Failed(_)));
    let nodes = state.as_ref().map(|state| state.nodes.as_slice()).unwrap_or_default();
    let processes = match owner {
        Some(_) => futures::future::join_all(nodes.iter().map(ask)).await,
        None => Vec::new(),
    };
    let report = Report {
        running: owner.is_some(),
        ready: state.as_ref().is_some_and(|state| state.phase == Phase::Ready) && processes.iter().all(|row| row.ready),
        failure: state.as_ref().and_then(|state| match &state.phase {
            Phase::Failed(reason) => Some(reason.as_str()),
            _ => None,
        }),
        endpoints: state.as_ref().map(|state| variables(&state.endpoints)).unwrap_or_default(),
        processes,
    };
    match output {
        Output::Json => print(serde_json::to_string_pretty(&report)?)?,
        Output::Text => show(&report, state.as_ref())?,
    }
    Ok(match (report.running, report.ready) {
        (false, _) => ExitCode::from(NOT_RUNNING),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    })
}

async fn ask(node: &NodeState) -> Row<'_> {
    let mut log_tail = None;
    let answer = match (&node.life, &node.probe) {
        (Life::Died { status, tail }, _) => {
            log_tail = Some(tail.as_str());
            Err(format!("died ({status})"))
        }
        (Life::Stopped, _) => Err("stopped".to_owned()),
        (Life::Starting, _) | (Life::Ready(_), None) => Err("starting".to_owned()),
        (Life::Ready(_), Some(probe)) => probe.ask().await,
    };
    Row {
        name: &node.name,
        pid: node.pid,
        addresses: &node.addresses,
        ready: answer.is_ok(),
        reason: answer.err(),
        log: &node.log,
        log_tail,
        restarts: node.restarts,
        restart_reason: node.restart_reason.as_deref(),
    }
}

fn show(report: &Report, state: Option<&State>) -> io::Result<()> {
    if let Some(failure) = report.failure {
        print(format_args!("the last start failed: {failure}"))?;
    }
    if !report.running {
        return print("nothing is up; start it with: infra/dev up");
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["PROCESS", "PID", "LISTENS ON", "STATE"]);
    for row in &report.processes {
        let mut state = row.reason.as_deref().unwrap_or("ready").to_owned();
        if let Some(reason) = row.restart_reason {
            state = format!("{state}; restarts: {}, the last because {reason}", row.restarts);
        }
        table.add_row([row.name, &row.pid.to_string(), &row.addresses.join(" "), &state]);
    }
    print(table)?;
    if state.is_some_and(report_dead) {
        eprintln!("\n{AFRESH}");
    }
    Ok(())
}
