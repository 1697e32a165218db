//! The service as its clients see it, on a real Kafka.

mod world;

mod bad_input;
mod clients;
mod contract;
mod outage;
mod shutdown;
