//! Dead letters: why a record could not be stored, and the headers that say so.
//!
//! A dead letter has the original key, value and headers, untouched, plus the headers named here. Integers are written
//! as decimal text.

use std::fmt;
use std::str::FromStr;

/// Header: a [`DlqReason`].
pub const DLQ_REASON: &str = "dlq.reason";
/// Header: what exactly was wrong, for a person.
pub const DLQ_DETAIL: &str = "dlq.detail";
/// Header: the topic the record came from.
pub const DLQ_TOPIC: &str = "dlq.topic";
/// Header: its partition there.
pub const DLQ_PARTITION: &str = "dlq.partition";
/// Header: its offset there.
pub const DLQ_OFFSET: &str = "dlq.offset";
/// Header: its timestamp there, milliseconds since 1970 UTC.
pub const DLQ_TIMESTAMP: &str = "dlq.timestamp";
/// Header: how often it was tried before it was given up.
pub const DLQ_ATTEMPTS: &str = "dlq.attempts";

/// Every `dlq.*` header; a replay removes these and keeps the others.
pub const HEADERS: [&str; 7] =
    [DLQ_REASON, DLQ_DETAIL, DLQ_TOPIC, DLQ_PARTITION, DLQ_OFFSET, DLQ_TIMESTAMP, DLQ_ATTEMPTS];

/// Why a record was dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DlqReason {
    /// The value is no `CodePacket`.
    DecodeError,
    /// A packet, but it breaks a rule: a bad `repo_id`, a key that is not its `repo_id`, a tombstone.
    InvalidPacket,
    /// The content is not gzip, or is damaged.
    GzipCorrupt,
    /// The content expands further than allowed.
    GzipBomb,
    /// Content over the size limit.
    TooLarge,
    /// The id was used before, for other content.
    IdConflict,
    /// Older than the backlog expiry when its turn came. Nothing is wrong with it: replay it.
    Expired,
    /// The store refuses this row for what it contains.
    StoreRejected,
}

impl DlqReason {
    /// All reasons, in the order a record meets them.
    pub const ALL: [Self; 8] = [
        Self::DecodeError,
        Self::InvalidPacket,
        Self::GzipCorrupt,
        Self::GzipBomb,
        Self::TooLarge,
        Self::IdConflict,
        Self::Expired,
        Self::StoreRejected,
    ];

    /// The value of the [`DLQ_REASON`] header, also used as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DecodeError => "decode_error",
            Self::InvalidPacket => "invalid_packet",
            Self::GzipCorrupt => "gzip_corrupt",
            Self::GzipBomb => "gzip_bomb",
            Self::TooLarge => "too_large",
            Self::IdConflict => "id_conflict",
            Self::Expired => "expired",
            Self::StoreRejected => "store_rejected",
        }
    }
}

impl fmt::Display for DlqReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// This text names no [`DlqReason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no dead-letter reason")]
pub struct UnknownDlqReason(String);

impl FromStr for DlqReason {
    type Err = UnknownDlqReason;

    fn from_str(text: &str) -> Result<Self, UnknownDlqReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or_else(|| UnknownDlqReason(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back() {
        for reason in DlqReason::ALL {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        assert_eq!("Expired".parse::<DlqReason>(), Err(UnknownDlqReason("Expired".to_owned())));
    }
}
