//! topic ─▶ task (status topic), `source_offset` (offset topic) │ restarts (the supervisors' file)
//!
//! What `MirrorMaker` 2 in dedicated mode (KIP-382) keeps in Kafka, and what its supervisors keep beside it: names and formats, without a
//! client. Its configuration is `mm2.properties` in this folder.

pub mod restarts;
pub mod source_offset;
pub mod task;
pub mod topic;

pub use source_offset::SourcePartition;
pub use task::{TaskState, TaskStatus};
