//! `devstack up`: starts the background process, unless it runs, and follows it until everything is ready.

use std::fs::{self, File};
use std::io;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use coderelay_devstack::tail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::home::Home;
use super::state::{Life, Phase, State, lines};
use super::view::View;
use super::{UpArgs, print};

/// Between two looks at what the background process has written.
const LOOK: Duration = Duration::from_millis(100);

/// What to do about processes that died.
pub(crate) const AFRESH: &str = "start afresh with: infra/dev down && infra/dev up";

/// Exit code of a program that was interrupted.
const INTERRUPTED: u8 = 130;

pub(crate) async fn up(home: &Home, args: &UpArgs) -> anyhow::Result<ExitCode> {
    let mut server = match home.owner() {
        Some(_) => None,
        None => Some(spawn_server(home, args)?),
    };
    let mut view = View::new();
    let state = tokio::select! {
        state = follow(home, &mut view, server.as_mut()) => state?,
        _ = tokio::signal::ctrl_c() => {
            view.finish();
            if let Some(server) = &mut server {
                kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM)?;
                server.wait()?;
            }
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    view.finish();
    if server.is_none() {
        eprintln!("it was running already");
    }
    announce(home, &state)?;
    if report_dead(&state) {
        eprintln!("\n{AFRESH}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn spawn_server(home: &Home, args: &UpArgs) -> anyhow::Result<Child> {
    fs::create_dir_all(home.dir()).with_context(|| home.dir().display().to_string())?;
    let log = File::create(home.log()).with_context(|| home.log().display().to_string())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--home").arg(home.dir()).args(["serve", "--brokers", &args.brokers.to_string()]);
    command.args(["--regions", &args.regions.to_string()]);
    if args.keep {
        command.arg("--keep");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("the background process")
}

/// Shows the owner's states until all is ready.
async fn follow(home: &Home, view: &mut View, mut server: Option<&mut Child>) -> anyhow::Result<State> {
    loop {
        // In this order: an owner that is gone has written its last state.
        let exited = server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(Some(_))));
        let owner = home.owner();
        let own_pid = server.as_ref().map(|server| server.id());
        let writer = owner.or(own_pid);
        if let Some(state) = home.state().filter(|state| Some(state.pid) == writer) {
            view.show(&state);
            match state.phase {
                Phase::Starting => {}
                Phase::Ready => return Ok(state),
                Phase::Failed(reason) => bail!("{reason}"),
                Phase::Stopping => bail!("it is being stopped; say `up` again when it is down"),
            }
        }
        if owner.is_none() && (exited || server.is_none()) {
            bail!("the background process ended:\n{}", tail(&home.log(), 20));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Addresses to standard output, so that a shell can take them; advice beside.
fn announce(home: &Home, state: &State) -> io::Result<()> {
    for note in &state.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "\nUp. The addresses, to paste into a shell (also in {}, one NAME=value a line):\n",
        home.env().display()
    );
    print(lines(&state.endpoints, "export "))
}

/// Names the processes that ended, with the last lines of their logs. Whether there are any.
pub(crate) fn report_dead(state: &State) -> bool {
    for node in state.dead() {
        if let Life::Died { status, tail } = &node.life {
            eprintln!("\n{} died ({status}); the last lines of {}:\n{tail}", node.name, node.log.display());
        }
    }
    state.dead().next().is_some()
}
