//! What coderelay's processes agree on: messages, ids, validation, topics and tables.
//!
//! ```text
//! pb ─▶ packet_id ─▶ gzip ─▶ validate ─▶ headers ─▶ topics ─▶ partition ─▶ ledger ─▶ dlq ─▶ cql
//! ```
//!
//! Everything here is pure: no sockets, no clocks, no Kafka and no CQL client. The files beside `src/` are the sources
//! of truth (`proto/`, `topics.toml`, `cql/`); `vectors/` holds test vectors that programs in any language can check
//! themselves against, and `dist/` the descriptor set that Spark, Flink, `DuckDB` and consoles load.

pub mod cql;
pub mod dlq;
pub mod gzip;
pub mod headers;
pub mod ledger;
pub mod packet_id;
pub mod partition;
pub mod pb;
pub mod topics;
pub mod validate;

pub use pb::FILE_DESCRIPTOR_SET;
