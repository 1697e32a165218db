//! `devstack`: the pipeline with its Kafka and Cassandra on this machine. `infra/dev` builds and calls it.

mod cli;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    cli::main().await.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
