//! The command line, and the way from it to a verb.

use std::io;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::connect::Connection;
use crate::demo::DemoArgs;
use crate::dlq::DlqCommand;
use crate::exit::{EXIT_CODES, Exit};
use crate::get::GetArgs;
use crate::groups::GroupsCommand;
use crate::health::HealthArgs;
use crate::mirror::MirrorCommand;
use crate::output::{Format, Output};
use crate::push::PushArgs;
use crate::tail::TailArgs;
use crate::topics::TopicsCommand;
use crate::{demo, dlq, get, groups, health, mirror, push, tail, topics};

/// Operate coderelay: push packets, read its topics and tables, repair what was dead-lettered
#[derive(Debug, Parser)]
#[command(name = "relayctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// What standard output carries
    #[arg(long, short, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Push(PushArgs),
    Tail(TailArgs),
    Get(GetArgs),
    #[command(subcommand)]
    Topics(TopicsCommand),
    #[command(subcommand)]
    Dlq(DlqCommand),
    #[command(subcommand)]
    Groups(GroupsCommand),
    #[command(subcommand)]
    Mirror(MirrorCommand),
    Health(HealthArgs),
    Demo(DemoArgs),
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Print the manual page, or write one for every command
    Man {
        /// Folder for the pages
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

impl Cli {
    /// The format asked for.
    pub fn format(&self) -> Format {
        self.output
    }
}

/// Runs one verb. An error is said on standard error and becomes its exit code. Needs a multi-threaded runtime, for
/// Kafka's consumers block.
pub async fn run(cli: Cli, output: &mut Output) -> Exit {
    match dispatch(cli, output).await {
        Ok(exit) => exit,
        // Whoever reads standard output has seen enough (`relayctl tail | head`).
        Err(error) if is_broken_pipe(&error) => Exit::Success,
        Err(error) => {
            let exit = Exit::of(&error);
            eprintln!("relayctl: {error:#}");
            exit
        }
    }
}

async fn dispatch(cli: Cli, output: &mut Output) -> anyhow::Result<Exit> {
    let connection = &cli.connection;
    match cli.command {
        Command::Push(args) => push::run(args, connection, output).await,
        Command::Tail(args) => tokio::task::block_in_place(|| tail::run(&args, connection, output)),
        Command::Get(args) => get::run(args, connection, output).await,
        Command::Topics(command) => topics::run(command, connection, output).await,
        Command::Dlq(command) => dlq::run(command, connection, output).await,
        Command::Groups(command) => tokio::task::block_in_place(|| groups::run(command, connection, output)),
        Command::Mirror(command) => mirror::run(command, connection, output).await,
        Command::Health(args) => health::run(args, connection, output).await,
        Command::Demo(args) => demo::run(args, connection, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "relayctl", &mut script);
            output.bytes(&script)?;
            Ok(Exit::Success)
        }
        Command::Man { out } => {
            manual(out, output)?;
            Ok(Exit::Success)
        }
    }
}

fn manual(out: Option<PathBuf>, output: &mut Output) -> anyhow::Result<()> {
    if let Some(folder) = out {
        std::fs::create_dir_all(&folder)?;
        clap_mangen::generate_to(Cli::command(), folder)?;
    } else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        output.bytes(&page)?;
    }
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    io.or(json) == Some(io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_manual_page_and_completions() {
        let folder = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), folder.path()).unwrap();
        let page = std::fs::read_to_string(folder.path().join("relayctl-dlq-replay.1")).unwrap();
        assert!(page.contains("id_conflict"));
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "relayctl", &mut script);
        assert!(String::from_utf8(script).unwrap().contains("--packet-id"));
    }

    #[test]
    fn connection_options_may_follow_the_verb() {
        let cli =
            Cli::try_parse_from(["relayctl", "tail", "--from", "-5", "--kafka", "k:1", "-X", "a=b", "-o", "json"]);
        let cli = cli.unwrap();
        assert_eq!((cli.connection.kafka.as_str(), cli.format()), ("k:1", Format::Json));
    }

    #[test]
    fn several_endpoints_keep_their_order() {
        let line = ["relayctl", "push", "--endpoint", "a:1,b:2", "--endpoint", "c:3"];
        assert_eq!(Cli::try_parse_from(line).unwrap().connection.ingest, ["a:1", "b:2", "c:3"]);
    }
}
