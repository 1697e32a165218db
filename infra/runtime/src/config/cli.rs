//! The command line's share of the configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::document::{document, show};
use super::source::{Assignment, CONFIG_VARIABLE, Sources};
use super::{Config, EX_CONFIG, load, read};

/// `--config` and `--set`, to be flattened into a service's command line.
#[derive(Debug, Clone, Default, Args)]
pub struct Cli {
    /// TOML file with the configuration; without one the defaults hold.
    #[arg(long, value_name = "FILE", global = true, env = CONFIG_VARIABLE)]
    pub config: Option<PathBuf>,
    /// Sets one key, over file and environment; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub set: Vec<Assignment>,
}

impl Cli {
    /// The sources of this process: file, its environment, flags.
    pub fn sources(&self) -> Sources {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        Sources { file: self.config.clone(), environment, flags: self.set.clone() }
    }
}

/// `config check`, `config show` and `config docs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and name every mistake; exit 78 if there is one
    Check,
    /// Print the configuration in effect as TOML, secrets redacted, with the source of each value that is no default
    Show,
    /// Print every key with its meaning, unit and default, as a TOML file to start from
    Docs,
}

impl ConfigCommand {
    /// Does what the command says; exit code 0 or [`EX_CONFIG`].
    pub fn run<T: Config>(self, cli: &Cli) -> ExitCode {
        let sources = cli.sources();
        let output = match self {
            Self::Check => load::<T>(&sources).map(|_| "configuration ok\n".to_owned()),
            Self::Show => read::<T>(&sources).map(|(config, merged)| show(&config, |path| merged.origin(path))),
            Self::Docs => Ok(document::<T>()),
        };
        match output {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(mistakes) => {
                eprintln!("{mistakes}");
                ExitCode::from(EX_CONFIG)
            }
        }
    }
}
