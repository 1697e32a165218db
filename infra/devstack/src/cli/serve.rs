//! The background process that owns what `up` starts. It leaves on SIGTERM, and everything with it.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::UpArgs;
use super::deployment::Deployment;
use super::home::Home;
use super::rebuild;
use super::state::{Phase, Reporter, State};

pub(crate) async fn serve(home: &Home, args: &UpArgs) -> anyhow::Result<ExitCode> {
    // A session of its own, because the terminal that said `up` may close. Fails only for one who has a session already.
    let _ = nix::unistd::setsid();
    // Someone was quicker: the `up` that started this one follows theirs.
    let Some(_claim) = home.claim()? else { return Ok(ExitCode::SUCCESS) };
    let mut terminated = signal(SignalKind::terminate())?;
    home.forget();
    if !args.keep {
        home.wipe_nodes()?;
    }

    let reporter = Reporter::new();
    let states = reporter.subscribe();
    let writer = tokio::spawn(write(home.clone(), states.clone()));
    let served = Box::pin(own(home, args, &reporter, &mut terminated)).await;

    writer.abort();
    home.forget();
    if let Err(error) = &served {
        reporter.phase(Phase::Failed(format!("{error:#}")));
        home.write_state(&states.borrow())?;
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Starts the deployment, watches over it and rebuilds what it is asked to (SIGUSR1) until SIGTERM, and stops it.
async fn own(home: &Home, args: &UpArgs, reporter: &Reporter, terminated: &mut Signal) -> anyhow::Result<()> {
    let mut asked = signal(SignalKind::user_defined1())?;
    let deployment = tokio::select! {
        started = Deployment::start(home, args.brokers, args.regions, reporter) => started?,
        _ = terminated.recv() => return Ok(()),
    };
    loop {
        // Whoever rebuilds a region ends and starts processes that must not be looked after meanwhile.
        tokio::select! {
            () = deployment.watch() => {}
            _ = asked.recv() => {}
            _ = terminated.recv() => break,
        }
        tokio::select! {
            () = rebuild::serve(home, &deployment, reporter) => {}
            _ = terminated.recv() => break,
        }
    }
    deployment.stop().await
}

async fn write(home: Home, mut states: watch::Receiver<State>) {
    loop {
        let state = states.borrow_and_update().clone();
        if let Err(error) = home.write_state(&state) {
            eprintln!("{error:#}");
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}
