//! `devstack`: the pipeline with its Kafka and Cassandra on this machine. `infra/dev` builds and calls it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let code = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let code = runtime.block_on(cli::main());
        // A download or a question to a broker may be under way on a thread of its own; nobody waits for it any more.
        runtime.shutdown_background();
        code
    });
    code.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
