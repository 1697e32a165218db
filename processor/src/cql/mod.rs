//! The store, ScyllaDB or Cassandra, over CQL.

mod session;
mod store;

pub use session::connect;
pub use store::{CqlStore, Inserter};
