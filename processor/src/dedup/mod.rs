//! Which packets were accepted before: the processor's memory.
//!
//! The memory is a view. The truth is the ledger topic, which is written in the same Kafka transaction as the offsets; an id may
//! enter this memory only after the transaction that carries it has committed, or by replay of what is committed.

mod memory;
mod page;

pub use memory::Memory;

use coderelay_schemas::ledger::Entry;

/// What the memory says of a packet's id and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The id was not seen within the window.
    New,
    /// The id was seen with the same content.
    Duplicate,
    /// The id was seen with other content.
    Conflict,
}

impl Judgement {
    fn of(remembered: Option<u64>, entry: &Entry) -> Self {
        match remembered {
            None => Self::New,
            Some(fingerprint) if fingerprint == entry.fingerprint => Self::Duplicate,
            Some(_) => Self::Conflict,
        }
    }
}
