//! `processor`: see `processor --help` and `processor config docs`.

use std::process::ExitCode;

use coderelay_runtime::Service;

fn main() -> ExitCode {
    Service {
        name: "processor",
        version: env!("CARGO_PKG_VERSION"),
        about: "Takes packets from Kafka, removes duplicates and stores each exactly once",
    }
    .main(processor::run)
}
