//! `devstack down`: tells the background process to leave, and follows it until all is gone.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::home::Home;
use super::state::Phase;
use super::view::View;

const LOOK: Duration = Duration::from_millis(100);
/// More than the graces of all processes together.
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) async fn down(home: &Home) -> anyhow::Result<ExitCode> {
    let Some(owner) = home.owner() else {
        home.forget();
        eprintln!("nothing is up");
        return Ok(ExitCode::SUCCESS);
    };
    kill(Pid::from_raw(owner.cast_signed()), Signal::SIGTERM)?;
    let since = Instant::now();
    let mut view = View::new();
    let mut last = None;
    while home.owner() == Some(owner) {
        if let Some(mut state) = home.state() {
            // It was told to, even where it has not yet written so.
            state.phase = Phase::Stopping;
            view.show(&state);
            last = Some(state);
        }
        if since.elapsed() > PATIENCE {
            // Its children are bound to its life.
            kill(Pid::from_raw(owner.cast_signed()), Signal::SIGKILL)?;
            bail!("it did not leave within {PATIENCE:?} and was killed");
        }
        tokio::time::sleep(LOOK).await;
    }
    if let Some(mut state) = last {
        state.stopped();
        view.show(&state);
    }
    view.finish();
    eprintln!("down");
    Ok(ExitCode::SUCCESS)
}
