//! What coderelay's processes agree on: messages, rules, ids, records, topics and tables.
//!
//! ```text
//! pb ─▶ gzip ─▶ limits ─▶ validate ─▶ packet_id ─▶ partition ─▶ headers ─▶ topics ─▶ ledger ─▶ dlq ─▶ cql
//! ```
//!
//! A packet ([`pb`]) is checked ([`gzip`], [`limits`], [`validate`]) and gets its id ([`packet_id`]). Its record has a
//! [`partition`] and [`headers`] in one of the [`topics`]. The processor notes it in the [`ledger`], and dead-letters it
//! ([`dlq`]) or stores it ([`cql`]).
//!
//! Everything here is pure: no sockets, no clocks, no Kafka and no CQL client. The files beside `src/` are the sources of
//! truth (`proto/`, `topics.toml`, `cql/`). `dist/` has the descriptor set for readers without generated code (Spark,
//! Flink, consoles), and `vectors/` the test vectors against which a program in any language can check itself.

pub mod pb;
pub mod gzip;
pub mod limits;
pub mod validate;
pub mod packet_id;
pub mod partition;
pub mod headers;
pub mod topics;
pub mod ledger;
pub mod dlq;
pub mod cql;

pub use pb::FILE_DESCRIPTOR_SET;
