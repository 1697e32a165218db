//! The names under which `MirrorMaker` keeps things, in the region that it writes to.

/// Where it writes a heartbeat a second, in every region it writes to.
pub const HEARTBEATS: &str = "heartbeats";

/// A topic of `source` as it is called in other regions (`DefaultReplicationPolicy`).
pub fn mirrored(source: &str, topic: &str) -> String {
    format!("{source}.{topic}")
}

/// What its connectors and tasks that read `source` say of themselves; see [`crate::task`].
pub fn status(source: &str) -> String {
    format!("mm2-status.{source}.internal")
}

/// How far it has read `source`; see [`crate::source_offset`].
pub fn offsets(source: &str) -> String {
    format!("mm2-offsets.{source}.internal")
}

/// The group of the workers that read `source`. It has members exactly while one runs, or was killed and its session is not over yet.
pub fn worker_group(source: &str) -> String {
    format!("{source}-mm2")
}
