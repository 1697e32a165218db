//! A service's `main` in one call: command line, configuration, telemetry, signals, exit code.

use std::future::Future;
use std::process::ExitCode;

use clap::{Args, FromArgMatches, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Cli, Config, ConfigCommand, EX_CONFIG};
use crate::lifecycle::{self, LifecycleConfig};
use crate::telemetry::{self, TelemetryConfig};

/// Who the service is.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Name of the binary and of the service in traces and metrics.
    pub name: &'static str,
    /// Version, as `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
}

/// What every service's configuration contains.
pub trait ServiceConfig: Config {
    /// The `telemetry` section.
    fn telemetry(&self) -> &TelemetryConfig;
    /// The `lifecycle` section.
    fn lifecycle(&self) -> &LifecycleConfig;
}

#[derive(Debug, Args)]
struct Arguments {
    #[command(flatten)]
    config: Cli,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (the default)
    Run(Cli),
    /// Check, show or document the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

impl Service {
    /// Reads the command line and runs what it asks for.
    ///
    /// Exit codes: 0 after a clean run, 1 when the service failed or did not finish within its grace period, 2 for a wrong command line,
    /// [`EX_CONFIG`] (78) for a wrong configuration, 128 + number when a second signal forced it out.
    pub fn main<C, F>(self, run: impl FnOnce(C, CancellationToken) -> F) -> ExitCode
    where
        C: ServiceConfig,
        F: Future<Output = anyhow::Result<()>>,
    {
        let command = Arguments::augment_args(clap::Command::new(self.name).version(self.version)).about(self.about);
        let arguments = Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
        let cli = match arguments.command {
            Some(Command::Config(command)) => return command.run::<C>(&arguments.config),
            Some(Command::Run(own)) => arguments.config.then(&own),
            None => arguments.config,
        };
        #[cfg(feature = "flaws")]
        if let Some(mistake) = crate::flaw::chosen().err().or(crate::clock::chosen().err()) {
            eprintln!("{}: {mistake}", self.name);
            return ExitCode::from(EX_CONFIG);
        }
        let config: C = match config::load(&cli.sources()) {
            Ok(config) => config,
            Err(mistakes) => {
                eprintln!("{}: {mistakes}", self.name);
                return ExitCode::from(EX_CONFIG);
            }
        };
        match self.serve(config, run) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{}: {error}", self.name);
                ExitCode::FAILURE
            }
        }
    }

    /// Whether the service ended well; what it failed of is in the log then. An error says why it could not even begin.
    fn serve<C, F>(self, config: C, run: impl FnOnce(C, CancellationToken) -> F) -> Result<bool, StartError>
    where
        C: ServiceConfig,
        F: Future<Output = anyhow::Result<()>>,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(self.name).build()?;
        let grace = config.lifecycle().grace.get();
        let ended_well = runtime.block_on(async {
            let telemetry = telemetry::init(config.telemetry(), self.name, self.version)?;
            let shutdown = lifecycle::shutdown_signal()?;
            tracing::info!(version = self.version, "starting");
            #[cfg(feature = "flaws")]
            if let Ok(Some(flaw)) = crate::flaw::chosen() {
                tracing::warn!(%flaw, "making a mistake, as was asked for");
            }
            let outcome = lifecycle::run_until(run(config, shutdown.clone()), &shutdown, grace).await;
            let outcome = outcome.unwrap_or_else(|expired| Err(expired.into()));
            match &outcome {
                Ok(()) => tracing::info!("stopped"),
                Err(error) => tracing::error!("failed: {error:#}"),
            }
            telemetry.shutdown().await;
            Ok(outcome.is_ok())
        });
        // Tasks that outlived the grace period must not hold the exit back.
        runtime.shutdown_background();
        ended_well
    }
}

/// Why a service could not begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
}
