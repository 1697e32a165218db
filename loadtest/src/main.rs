//! Loads a coderelay deployment and measures what it did.

use std::process::ExitCode;

use clap::Parser;
use loadtest::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(Cli::parse().run()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
