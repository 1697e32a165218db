//! The `ingest` service.

use std::process::ExitCode;

use coderelay_runtime::Service;

fn main() -> ExitCode {
    let service = Service {
        name: "ingest",
        version: env!("CARGO_PKG_VERSION"),
        about: "Takes packets of code over gRPC and writes them to Kafka",
    };
    service.main(ingest::run)
}
