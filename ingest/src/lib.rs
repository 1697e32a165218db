//! Takes packets over gRPC and writes them to Kafka.
//!
//! ```text
//! server ─▶ listener ─▶ service ─▶ stream ─▶ frames ─▶ intake ─▶ wire ─▶ admission ─▶ validate ─▶ producer ─▶ reply ─▶ outcome
//! ```
//!
//! A client's message is charged to the budget ([`admission`]) before it is read ([`frames`]), taken apart into packets
//! ([`wire`]), and each packet is checked ([`validate`]) and handed to the Kafka client ([`producer`]). The delivery report of
//! a packet gives its share of the budget back and settles its [`outcome`]; the last one of a request sends the [`reply`].

pub mod server;

pub mod listener;

pub mod service;

pub mod stream;

pub mod frames;

pub mod intake;

pub mod wire;

pub mod admission;

pub mod validate;

pub mod producer;

pub mod reply;

pub mod outcome;

pub mod config;

pub mod metrics;

pub mod monitor;

pub mod trace;

pub use server::run;
