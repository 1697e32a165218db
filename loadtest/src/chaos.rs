//! Tries to break what is promised: seeded faults against a real deployment, and an exact checker.
//!
//! ```text
//! seed ─▶ plan ─▶ game: world, producers ∥ nemesis ∥ witness ─▶ evidence ─▶ verdict ─▶ campaign: table of what was hit
//! ```
//!
//! From one number follow the workload, the faults, their order and times. What the scheduler makes of it differs from run to run: a
//! seed reproduces a plan, not an interleaving.

pub mod plan;
pub mod fault;
pub mod mishap;

pub mod history;
pub mod packets;
pub mod producer;
pub mod witness;

pub mod keeper;
pub mod region;
pub mod world;
pub mod nemesis;
pub mod rest;
pub mod replay;
pub mod stacks;

pub mod edges;
pub mod topic;
pub mod evidence;
pub mod expected;
pub mod mirrored;
pub mod verdict;

pub mod game;
pub mod campaign;
pub mod controls;
mod cli;

pub use cli::{ChaosArgs, Found};
