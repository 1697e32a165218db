//! Which packets were accepted before: the processor's memory.
//!
//! The memory is a view. The truth is the ledger topic, which is written in the same Kafka transaction as the offsets; an id may
//! enter this memory only after the transaction that carries it has committed, or by replay of what is committed.

mod memory;
mod page;
mod topics;

pub use memory::Memory;
pub use topics::{MAX_TOPICS, TooManyTopics, TopicSet};

/// What the memory says of a packet's id and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The id was not seen within the window.
    New,
    /// The id was seen with the same content.
    Duplicate {
        /// Whether the topic brings the id for the first time.
        first: bool,
    },
    /// The id was seen with other content.
    Conflict {
        /// Whether the topic brings the id for the first time.
        first: bool,
        /// The fingerprint of the content that was accepted.
        accepted: u64,
    },
}
