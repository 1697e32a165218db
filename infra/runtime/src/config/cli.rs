//! The command line's share of the configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::document::{document, show};
use super::source::{Assignment, CONFIG_VARIABLE, Sources};
use super::{Config, EX_CONFIG, load, read};

/// `--config` and `--set`, to be flattened into a service's command line.
#[derive(Debug, Clone, Default, Args)]
// Else clap takes the lines above for the description of the whole command.
#[command(about = None, long_about = None)]
pub struct Cli {
    /// TOML file with the configuration (environment: `CODERELAY_CONFIG`); without one the defaults hold
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key, over file and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<Assignment>,
}

impl Cli {
    /// Both together; `later` wins. (clap's global arguments would drop the assignments before a subcommand if some follow it.)
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        Self { config: later.config.clone().or_else(|| self.config.clone()), set: [&self.set[..], &later.set].concat() }
    }

    /// The sources of this process: file, its environment, flags.
    pub fn sources(&self) -> Sources {
        let named_by_environment =
            || std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        Sources { file: self.config.clone().or_else(named_by_environment), environment, flags: self.set.clone() }
    }
}

/// `config check`, `config show` and `config docs`.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and name every mistake; exit 78 if there is one
    Check(Cli),
    /// Print the configuration in effect as TOML, secrets redacted, with the source of each value that is no default
    Show(Cli),
    /// Print every key with its meaning, what is allowed and its default, as a TOML file to start from
    Docs,
}

impl ConfigCommand {
    /// Does what the command says, with `cli` as what stood before it; exit code 0 or [`EX_CONFIG`].
    pub fn run<T: Config>(&self, cli: &Cli) -> ExitCode {
        let output = match self {
            Self::Check(own) => load::<T>(&cli.then(own).sources()).map(|_| "configuration ok\n".to_owned()),
            Self::Show(own) => {
                read::<T>(&cli.then(own).sources()).map(|(config, merged)| show(&config, |path| merged.origin(path)))
            }
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
