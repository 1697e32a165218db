//! Loads a coderelay deployment and measures what it did.
//!
//! ```text
//! scenario ─▶ plan ─▶ generator ─▶ (ingest ─▶ Kafka ─▶ processor ─▶ CQL) ─▶ reader, rows, table ─▶ audit ─▶ summary ─▶ report
//!             corpus                  ▲ faults                      recorder, timeline ─▶ thresholds
//! ```

pub mod scenario;
pub mod threshold;

pub mod corpus;
pub mod plan;

mod in_flight;
pub mod generator;

pub mod latency;
pub mod recorder;

mod service;
pub mod pipeline;
pub mod deployment;
pub mod devstack;
pub mod faults;

pub mod backlog;
pub mod resources;
pub mod scrape;
pub mod timeline;

pub mod audit;
pub mod audits;
pub mod reader;
pub mod table;
pub mod rows;

pub mod knee;
pub mod start;

pub mod run;
mod mirror;
mod outcome;
pub mod machine;
pub mod summary;

pub mod limits;
pub mod memory;
pub mod sizes;

pub mod results;
pub mod report;
mod noise;
pub mod compare;
pub mod merge;

pub mod chaos;

pub mod targets;
pub mod bench;

mod progress;
mod view;
pub mod cli;
