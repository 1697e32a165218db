//! The rules a packet must keep, and what ingest fills in.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gzip::{self, GzipError, GzipLimits};
use crate::packet_id::{PACKET_ID_LEN, PacketId};
use crate::pb::CodePacket;

/// Bounds of one packet. The defaults are the contract's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct PacketLimits {
    /// Longest `repo_id`, in bytes of UTF-8.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub repo_id_max: ByteSize,
    /// Largest `content`, compressed.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub content_max: ByteSize,
    /// Largest `content`, expanded.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub expanded_max: ByteSize,
    /// Most expanded bytes per compressed byte; judged above 64 KiB expanded.
    #[garde(range(min = 1))]
    pub ratio_max: u32,
    /// Most metadata entries.
    #[garde(skip)]
    pub metadata_entries: u32,
    /// Most bytes of all metadata keys and values together.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub metadata_bytes: ByteSize,
    /// How far `created_at` may be from the receiver's clock before that replaces it.
    #[garde(skip)]
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub created_at_skew: Duration,
}

impl Default for PacketLimits {
    fn default() -> Self {
        Self {
            repo_id_max: ByteSize::b(256),
            content_max: ByteSize::mib(4),
            expanded_max: ByteSize::mib(64),
            ratio_max: 200,
            metadata_entries: 64,
            metadata_bytes: ByteSize::kib(16),
            created_at_skew: Duration::from_secs(24 * 3600),
        }
    }
}

impl PacketLimits {
    /// The part that concerns the content.
    pub fn gzip(&self) -> GzipLimits {
        GzipLimits {
            max_compressed: self.content_max.as_u64(),
            max_expanded: self.expanded_max.as_u64(),
            max_ratio: self.ratio_max,
        }
    }
}

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No `repo_id`.
    RepoIdEmpty,
    /// `repo_id` over the limit.
    RepoIdTooLong,
    /// A control character (Unicode category Cc) in `repo_id`.
    RepoIdControlCharacter,
    /// `repo_id` is not UTF-8.
    RepoIdNotUtf8,
    /// `content` does not start like gzip.
    ContentNotGzip,
    /// `content` is damaged: truncated, a wrong checksum or length, trailing bytes.
    ContentCorrupt,
    /// `content` over the limit, compressed or expanded.
    ContentTooLarge,
    /// `content` expands too many times its size.
    ContentBomb,
    /// Too many metadata entries.
    MetadataTooMany,
    /// Too many bytes of metadata.
    MetadataTooLarge,
    /// A key or value of the metadata is not UTF-8.
    MetadataNotUtf8,
    /// `packet_id` is neither empty nor 16 bytes.
    PacketIdLength,
    /// The bytes are no `CodePacket` at all.
    PacketMalformed,
}

impl Reason {
    /// The reason as it stands in `google.rpc.ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RepoIdEmpty => "REPO_ID_EMPTY",
            Self::RepoIdTooLong => "REPO_ID_TOO_LONG",
            Self::RepoIdControlCharacter => "REPO_ID_CONTROL_CHARACTER",
            Self::RepoIdNotUtf8 => "REPO_ID_NOT_UTF8",
            Self::ContentNotGzip => "CONTENT_NOT_GZIP",
            Self::ContentCorrupt => "CONTENT_CORRUPT",
            Self::ContentTooLarge => "CONTENT_TOO_LARGE",
            Self::ContentBomb => "CONTENT_BOMB",
            Self::MetadataTooMany => "METADATA_TOO_MANY",
            Self::MetadataTooLarge => "METADATA_TOO_LARGE",
            Self::MetadataNotUtf8 => "METADATA_NOT_UTF8",
            Self::PacketIdLength => "PACKET_ID_LENGTH",
            Self::PacketMalformed => "PACKET_MALFORMED",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// The field of `CodePacket`.
    pub field: &'static str,
    /// The rule, for programs.
    pub reason: Reason,
    /// What is wrong and what is allowed, for people.
    pub description: String,
}

impl Violation {
    fn new(field: &'static str, reason: Reason, description: impl Into<String>) -> Self {
        Self { field, reason, description: description.into() }
    }
}

impl From<GzipError> for Violation {
    fn from(error: GzipError) -> Self {
        let reason = match &error {
            GzipError::NotGzip(_) => Reason::ContentNotGzip,
            GzipError::Corrupt(_) => Reason::ContentCorrupt,
            GzipError::Bomb { .. } => Reason::ContentBomb,
            GzipError::TooLarge { .. } => Reason::ContentTooLarge,
        };
        Self::new("content", reason, error.to_string())
    }
}

/// Checks everything but the inside of the content: cheap, and names every violation at once.
///
/// # Errors
/// All violations, in the order of the fields.
pub fn check_fields(packet: &CodePacket, limits: &PacketLimits) -> Result<(), Vec<Violation>> {
    let mut violations = Vec::new();
    let mut refuse = |field, reason, description| violations.push(Violation::new(field, reason, description));

    if packet.repo_id.is_empty() {
        refuse("repo_id", Reason::RepoIdEmpty, "is required".to_owned());
    }
    if packet.repo_id.len() as u64 > limits.repo_id_max.as_u64() {
        let (len, max) = (packet.repo_id.len(), limits.repo_id_max.as_u64());
        refuse("repo_id", Reason::RepoIdTooLong, format!("has {len} bytes; at most {max} are allowed"));
    }
    if let Some((at, c)) = packet.repo_id.char_indices().find(|(_, c)| c.is_control()) {
        let what = format!("has the control character U+{:04X} at byte {at}", u32::from(c));
        refuse("repo_id", Reason::RepoIdControlCharacter, what);
    }
    if packet.content.len() as u64 > limits.content_max.as_u64() {
        let (len, max) = (packet.content.len(), limits.content_max.as_u64());
        refuse("content", Reason::ContentTooLarge, format!("has {len} bytes; at most {max} are allowed"));
    }
    let entries = packet.metadata.len();
    if entries > limits.metadata_entries as usize {
        let max = limits.metadata_entries;
        refuse("metadata", Reason::MetadataTooMany, format!("has {entries} entries; at most {max} are allowed"));
    }
    let bytes: usize = packet.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes as u64 > limits.metadata_bytes.as_u64() {
        let max = limits.metadata_bytes.as_u64();
        refuse("metadata", Reason::MetadataTooLarge, format!("has {bytes} bytes; at most {max} are allowed"));
    }
    if !matches!(packet.packet_id.len(), 0 | PACKET_ID_LEN) {
        let len = packet.packet_id.len();
        refuse("packet_id", Reason::PacketIdLength, format!("has {len} bytes; it must have 16, or none"));
    }

    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Verifies the content as gzip, to its last byte, and answers how many bytes it expands to.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_content(content: &[u8], limits: &PacketLimits) -> Result<u64, Violation> {
    Ok(gzip::verify(content, &limits.gzip())?)
}

/// Fills in what the producer left out, and answers the packet's id: `packet_id` is derived if empty, `created_at` becomes
/// `now` if it is missing or further off than the limit. Call it for a packet that passed [`check_fields`].
pub fn complete(packet: &mut CodePacket, now: SystemTime, limits: &PacketLimits) -> PacketId {
    let id = PacketId::from_slice(&packet.packet_id).unwrap_or_else(|_| {
        let id = PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata);
        packet.packet_id = id.to_bytes();
        id
    });
    let plausible = packet
        .created_at
        .and_then(|at| SystemTime::try_from(at).ok())
        .is_some_and(|at| distance(at, now) <= limits.created_at_skew);
    if !plausible {
        packet.created_at = Some(now.into());
    }
    id
}

fn distance(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|earlier| earlier.duration())
}
