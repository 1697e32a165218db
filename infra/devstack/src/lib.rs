//! pom ─▶ jars ─▶ folder, ports, security ─▶ spawner ─▶ process ─▶ kafka, cassandra ─▶ readiness ─▶ stack ─▶ topics, keyspace, transactions
//! stack, stack ─▶ mirrormaker ─▶ direction ─▶ supervisor
//!
//! A real Kafka and a real Cassandra as child processes, for development and tests:
//!
//! ```no_run
//! # async fn test() -> coderelay_devstack::Result<()> {
//! let stack = coderelay_devstack::Stack::builder().brokers(3).cql(true).start().await?;
//! stack.broker(1).kill().await?;
//! stack.broker(1).restart().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every node has its own folder and log, free ports, and is ready when it answers, not when some time has passed.
//! Nothing survives the process that started it. Linux only: that guarantee is `PR_SET_PDEATHSIG`'s.

mod error;
mod progress;

mod jars;
mod jvm;

mod folder;
mod ports;
mod security;

mod launch;
mod link;
mod process;
mod spawner;

mod cassandra;
mod kafka;

mod readiness;

mod stack;

mod provision;
mod transactions;

mod raw;

mod regions;

mod direction;
mod mirrormaker;
mod supervisor;

pub use cassandra::CommitLog;
pub use coderelay_mirrormaker::TaskState;
pub use direction::{Cluster, Direction, Observation, Task};
pub use error::{Error, Result};
pub use jars::{CASSANDRA_VERSION, KAFKA_VERSION, cache_dir};
pub use jvm::Jit;
pub use kafka::MESSAGE_MAX_BYTES;
pub use launch::Launch;
pub use link::{Action, Api, Interception, Rule};
pub use mirrormaker::MirrorMaker;
pub use ports::{free_port, preferred_port};
pub use process::{Process, tail};
pub use progress::{Event, Observer};
pub use raw::RawRecord;
pub use readiness::Probe;
pub use regions::{REGIONS, Regions, of_region};
pub use security::Credentials;
pub use stack::{Builder, PORTS_A_REGION, Stack, shared};
pub use supervisor::{Cause, Patience, Sight, Supervisor, Verdict};
pub use transactions::HangingTransaction;
