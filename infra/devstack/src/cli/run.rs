//! `devstack run`: a fresh deployment in the foreground, and the demonstration on it.

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, bail};
use coderelay_devstack::{Launch, Process};
use nix::fcntl::Flock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::RunArgs;
use super::deployment::Deployment;
use super::home::Home;
use super::state::{Endpoints, Reporter, State, lines};
use super::up::report_dead;
use super::view::View;

/// Exit code of a program that was interrupted.
pub(super) const INTERRUPTED: u8 = 130;

pub(crate) async fn run(home: &Home, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (home, _claim) = own_home(home)?;
    home.wipe_nodes()?;
    let mut interruption = Interruption::new()?;
    let reporter = Reporter::new();
    let mut view = View::new();
    let start = view.during(reporter.subscribe(), Deployment::start(&home, args.brokers, 1, &reporter));
    let deployment = tokio::select! {
        started = start => started?,
        () = interruption.wait() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    for note in &reporter.subscribe().borrow().notes {
        eprintln!("note: {note}");
    }
    let demo = demo(&home, args.paths_or_default(), deployment.endpoints())?;
    let code = tokio::select! {
        status = demo.wait() => exit_code(status),
        () = interruption.wait() => INTERRUPTED,
    };
    demo.kill().await?;
    if !args.exit && code != INTERRUPTED {
        advise(&home, deployment.endpoints());
        stay(&deployment, &reporter, &mut interruption).await;
    }
    // A second Ctrl-C leaves at once: the processes are bound to this one's life.
    tokio::select! {
        stopped = view.during(reporter.subscribe(), deployment.stop()) => stopped?,
        () = interruption.wait() => {}
    }
    Ok(ExitCode::from(code))
}

/// A folder per concurrent run: `run`, `run-2`, …
pub(super) fn own_home(home: &Home) -> anyhow::Result<(Home, Flock<std::fs::File>)> {
    for number in 1..100 {
        let name = if number == 1 { "run".to_owned() } else { format!("run-{number}") };
        let candidate = home.below(home.dir().join(name));
        if let Some(claim) = candidate.claim()? {
            return Ok((candidate, claim));
        }
    }
    bail!("a hundred runs in {} at once", home.dir().display())
}

fn demo(home: &Home, paths: Vec<PathBuf>, endpoints: &Endpoints) -> anyhow::Result<Process> {
    let program = home.program("relayctl");
    let here = std::env::current_dir().context("the current folder")?;
    let flags = [
        ("--ingest", &endpoints.ingest),
        ("--ingest-admin", &endpoints.ingest_admin),
        ("--processor-admin", &endpoints.processor_admin),
        ("--kafka", &endpoints.kafka),
        ("--cql", &endpoints.cql),
    ];
    let launch = Launch::new("demo", &program, here)
        .args(["demo"])
        .args(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.clone()]))
        .args(paths)
        .envs(endpoints.variables())
        .inherit_output();
    Process::launch(launch).context("cargo build --release builds relayctl; `infra/dev` does it")
}

fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn advise(home: &Home, endpoints: &Endpoints) {
    let relayctl = home.program("relayctl");
    let relayctl = relayctl.display();
    let logs = home.nodes();
    eprintln!(
        "
Everything stays up until Ctrl-C. In another terminal:

{exports}
  echo 'fn main() {{}}' | {relayctl} push --repo try -
  {relayctl} get try                     # what is stored of it
  {relayctl} tail --follow               # the duplicate-free topic
  {relayctl} groups lag                  # how far the processor is behind
  curl -s $PROCESSOR_ADMIN/metrics       # its metrics; $INGEST_ADMIN/metrics are those of ingest

Data and logs: {logs}",
        exports = lines(std::slice::from_ref(endpoints), "  export "),
        logs = logs.display(),
    );
}

/// Until the user leaves; says so when a process dies meanwhile.
pub(super) async fn stay(deployment: &Deployment, reporter: &Reporter, interruption: &mut Interruption) {
    let mut states = reporter.subscribe();
    let mut known = 0;
    let mourn = async {
        while states.changed().await.is_ok() {
            let state: State = states.borrow_and_update().clone();
            if state.dead().count() > known {
                known = state.dead().count();
                report_dead(&state);
            }
        }
    };
    tokio::select! {
        () = deployment.watch() => {}
        () = mourn => {}
        () = interruption.wait() => {}
    }
}

/// Ctrl-C or SIGTERM.
pub(super) struct Interruption {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruption {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
