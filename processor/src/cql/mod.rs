//! The store, ScyllaDB or Cassandra, over CQL.

mod config;
mod session;
mod store;

pub use config::{Consistency, CqlConfig, CqlTlsConfig};
pub use session::connect;
pub use store::{CqlStore, Inserter, group};
