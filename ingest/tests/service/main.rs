//! The service as its clients see it, on a real Kafka.

// Helpers are not test functions, which is where clippy.toml allows these.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod http2;
#[path = "../../../schemas/tests/support/mutation.rs"]
mod mutation;
mod world;

mod abuse;
mod bad_input;
mod clients;
mod contract;
mod mirrored;
mod mutated;
mod outage;
mod region_loss;
mod shutdown;
mod tls;
