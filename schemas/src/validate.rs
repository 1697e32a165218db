//! The rules a packet must keep, and what ingest fills in.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::gzip::{self, GzipError};
pub use crate::limits::PacketLimits;
use crate::packet_id::{PACKET_ID_LEN, PacketId};
use crate::pb::CodePacket;

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
    /// All reasons, in the order of the fields.
    pub const ALL: [Self; 13] = [
        Self::RepoIdEmpty,
        Self::RepoIdTooLong,
        Self::RepoIdControlCharacter,
        Self::RepoIdNotUtf8,
        Self::ContentNotGzip,
        Self::ContentCorrupt,
        Self::ContentTooLarge,
        Self::ContentBomb,
        Self::MetadataTooMany,
        Self::MetadataTooLarge,
        Self::MetadataNotUtf8,
        Self::PacketIdLength,
        Self::PacketMalformed,
    ];

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
        .filter(|at| (0..1_000_000_000).contains(&at.nanos))
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn packet() -> CodePacket {
        CodePacket {
            repo_id: "github.com/example/repo".to_owned(),
            content: Bytes::from_static(b"x"),
            ..Default::default()
        }
    }

    fn reasons(packet: &CodePacket) -> Vec<&'static str> {
        let violations = check_fields(packet, &PacketLimits::default()).err().unwrap_or_default();
        violations.iter().map(|violation| violation.reason.as_str()).collect()
    }

    fn metadata(entries: usize, bytes: usize) -> std::collections::BTreeMap<String, String> {
        (0..entries).map(|i| (format!("{i:04}"), "v".repeat(bytes / entries - 4))).collect()
    }

    fn completed(created_at: Option<prost_types::Timestamp>) -> Option<prost_types::Timestamp> {
        let mut packet = CodePacket { created_at, ..packet() };
        complete(&mut packet, UNIX_EPOCH + NOW, &PacketLimits::default());
        packet.created_at
    }

    #[test]
    fn a_packet_of_the_original_format_is_accepted() {
        let packet = CodePacket { metadata: metadata(2, 20), ..packet() };
        assert_eq!(check_fields(&packet, &PacketLimits::default()), Ok(()));
    }

    #[test]
    fn limits_are_inclusive() {
        let packet = CodePacket { repo_id: "ä".repeat(128), metadata: metadata(64, 16 * 1024), ..packet() };
        assert_eq!(reasons(&packet), Vec::<&str>::new());
    }

    #[test]
    fn every_broken_rule_is_named_at_once() {
        let packet = CodePacket {
            repo_id: format!("{}\n", "x".repeat(256)),
            content: vec![0; (4 << 20) + 1].into(),
            metadata: metadata(65, 17 * 1024),
            packet_id: vec![0; 15].into(),
            created_at: None,
        };
        let expected = [
            "REPO_ID_TOO_LONG",
            "REPO_ID_CONTROL_CHARACTER",
            "CONTENT_TOO_LARGE",
            "METADATA_TOO_MANY",
            "METADATA_TOO_LARGE",
            "PACKET_ID_LENGTH",
        ];
        assert_eq!(reasons(&packet), expected);
    }

    #[test]
    fn an_empty_repo_id_and_control_characters_of_all_sorts_are_refused() {
        let with_repo_id = |repo_id: &str| CodePacket { repo_id: repo_id.to_owned(), ..packet() };
        assert_eq!(reasons(&with_repo_id("")), ["REPO_ID_EMPTY"]);
        for character in ['\0', '\t', '\u{1b}', '\u{7f}', '\u{85}'] {
            assert_eq!(reasons(&with_repo_id(&format!("a{character}b"))), ["REPO_ID_CONTROL_CHARACTER"]);
        }
        let violations = check_fields(&with_repo_id("ä\u{85}"), &PacketLimits::default()).unwrap_err();
        assert_eq!(violations[0].to_string(), "repo_id: has the control character U+0085 at byte 2");
    }

    #[test]
    fn every_reason_is_documented_for_clients() {
        let proto = include_str!("../proto/coderelay/v1/ingest.proto");
        for reason in Reason::ALL {
            assert!(proto.contains(reason.as_str()), "{reason} is missing in ingest.proto");
        }
    }

    #[test]
    fn content_violations_carry_the_reason() {
        let violation = check_content(b"plain text", &PacketLimits::default()).unwrap_err();
        assert_eq!((violation.field, violation.reason), ("content", Reason::ContentNotGzip));
        assert_eq!(violation.to_string(), "content: not gzip: starts with 0x70 0x6c, not 0x1f 0x8b");
    }

    #[test]
    fn a_producers_id_is_kept_and_a_missing_one_is_derived() {
        let limits = PacketLimits::default();
        let own = PacketId([9; 16]);
        let mut packet = CodePacket { packet_id: own.to_bytes(), ..packet() };
        assert_eq!(complete(&mut packet, UNIX_EPOCH + NOW, &limits), own);

        packet.packet_id = Bytes::new();
        let derived = complete(&mut packet, UNIX_EPOCH + NOW, &limits);
        assert_eq!(derived, PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata));
        assert_eq!(packet.packet_id, derived.to_bytes());
        assert_eq!(complete(&mut packet, UNIX_EPOCH + 2 * NOW, &limits), derived, "completing twice changes no id");
    }

    #[test]
    fn event_time_is_kept_within_a_day_of_now() {
        let now = prost_types::Timestamp { seconds: NOW.as_secs() as i64, nanos: 0 };
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds: now.seconds + seconds, nanos: 0 });
        for kept in [0, 24 * 3600, -24 * 3600] {
            assert_eq!(completed(at(kept)), at(kept));
        }
        for replaced in [24 * 3600 + 1, -24 * 3600 - 1, 365 * 24 * 3600, i64::MIN / 4] {
            assert_eq!(completed(at(replaced)), Some(now));
        }
        assert_eq!(completed(None), Some(now));
        assert_eq!(completed(Some(prost_types::Timestamp { nanos: -1, ..now })), Some(now), "not a valid timestamp");
    }

    proptest! {
        #[test]
        fn any_timestamp_becomes_a_plausible_one(seconds in any::<i64>(), nanos in any::<i32>()) {
            let at = SystemTime::try_from(completed(Some(prost_types::Timestamp { seconds, nanos })).unwrap()).unwrap();
            prop_assert!(distance(at, UNIX_EPOCH + NOW) <= Duration::from_secs(24 * 3600));
        }
    }
}
