//! Loads a coderelay deployment and measures what it did.
//!
//! `corpus → generator → (ingest → Kafka → processor → CQL) → latency, backlog, scrape, resources → ingest, drain → figures → report`

pub mod corpus;

pub mod generator;

pub mod audit;
pub mod reader;
pub mod table;

pub mod latency;

pub mod backlog;
pub mod scrape;

pub mod resources;

pub mod ingest;

pub mod drain;

pub mod figures;
pub mod limits;
pub mod sizes;
pub mod machine;

pub mod report;
pub mod summary;

pub mod cli;
