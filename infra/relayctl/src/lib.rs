//! The operator's command line for coderelay: push packets, look at every topic and table of the path, repair what was
//! dead-lettered, and show with numbers that each packet was stored once.
//!
//! ```text
//! arguments ──▶ cli ──▶ verb (push, tail, get, topics, dlq, groups, health, demo) ──▶ connect: gRPC, Kafka, CQL ──▶ output
//! ```
//!
//! A verb is one module: its arguments, its `run`, its rows. Verbs write their results to [`Output`] (a table or JSON) and
//! answer an [`Exit`]; everything said on the way (progress, warnings) goes to standard error.

mod cli;

mod demo;
mod dlq;
mod get;
mod groups;
mod health;
mod push;
mod tail;
mod topics;

mod evidence;
mod findings;

mod delivery;
mod packer;
mod publisher;
mod source;
mod window;

mod dead_letter;
mod position;
mod reader;
mod record;
mod store;
mod cluster;

mod connect;
mod exit;
mod output;
mod progress;

pub use cli::{Cli, run};
pub use exit::Exit;
pub use output::{Format, Output};
