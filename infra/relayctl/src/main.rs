//! `relayctl`: reads the command line, runs one verb, leaves with its exit code.

use std::process::ExitCode;

use clap::Parser;
use relayctl::{Cli, Output};
use tracing_subscriber::EnvFilter;

/// The clients report every refused connection; a verb that cannot reach Kafka or the store says so once, itself.
const LOG_FILTER: &str = "warn,librdkafka=off,rdkafka=off,scylla=off";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let colour = relayctl::is_colourful(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();

    let cli = Cli::parse();
    let mut output = Output::stdout(cli.format());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("relayctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(relayctl::run(cli, &mut output)).into()
}
