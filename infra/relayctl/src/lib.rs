//! The operator's command line for coderelay: push packets, look at every topic and table of the path, repair what was
//! dead-lettered, and show with numbers that each packet was stored once.
//!
//! ```text
//! arguments ──▶ cli ──▶ verb (push, tail, get, topics, dlq, groups, mirror, health, demo) ──▶ connect: gRPC, Kafka, CQL ──▶ output
//! ```
//!
//! A verb is one module: its arguments, its `run`, its rows. Verbs write their results to [`Output`] (a table or JSON) and
//! answer an [`Exit`]; everything said on the way (progress, warnings) goes to standard error.

mod cli;

mod push;
mod tail;
mod get;
mod topics;
mod dlq;
mod groups;
mod mirror;
mod health;
mod demo;

mod source;
mod packer;
mod window;
mod endpoints;
mod publisher;
mod delivery;

mod position;
mod reader;
mod record;
mod dead_letter;
mod replay;
mod cluster;
mod store;

mod region;
mod mirror_status;
mod mirror_watch;
mod comparison;
mod receipts;
mod restore;
mod source_offsets;
mod outbox;
mod findings;
mod evidence;

mod connect;
mod tls;

mod exit;
mod output;
mod progress;

pub use cli::{Cli, run};
pub use exit::Exit;
pub use output::{Format, Output, is_colourful};
