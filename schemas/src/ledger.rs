//! The packed dedup entries in `code.packets.ledger.v1`.
//!
//! One record holds the entries of one transaction for one partition of one source topic, which the header `source-topic` names: a
//! version byte, then 24 bytes an entry, big-endian:
//!
//! ```text
//! 01 | key (16) fingerprint (8) | key (16) fingerprint (8) | …
//! ```
//!
//! An id has an entry for every topic that brought it, each with the fingerprint of the content that was accepted.

use crate::packet_id::{PacketId, update_prefixed};

/// The format that [`encode`] writes, in the first byte.
pub const VERSION: u8 = 1;
/// Encoded size of one entry in bytes.
pub const ENTRY_LEN: usize = 24;

/// Header with the name of the topic in which the packets were seen. Earlier releases left it out; theirs were seen in the region's own.
pub const SOURCE_TOPIC: &str = "source-topic";

/// One accepted packet: that it was seen, and with which content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// First 128 bits of `BLAKE3(le64(len(repo_id)) repo_id packet_id)`: which packet.
    pub key: u128,
    /// First 64 bits of `BLAKE3(content)`: tells a duplicate from an id that was used for something else.
    pub fingerprint: u64,
}

/// A ledger record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// No bytes at all, not even a version.
    #[error("ledger record is empty")]
    Empty,
    /// Written by a later release.
    #[error("ledger record has version {0}; this release reads version 1")]
    UnknownVersion(u8),
    /// Not a whole number of entries.
    #[error("ledger record has {0} bytes after its version, not a multiple of 24")]
    Truncated(usize),
}

impl Entry {
    /// The entry of a packet, from its `repo_id`, id and `content` as stored (compressed).
    pub fn new(repo_id: &str, packet_id: &PacketId, content: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        update_prefixed(&mut hasher, repo_id.as_bytes());
        hasher.update(packet_id.as_bytes());
        let key = u128::from_be_bytes(prefix(&hasher.finalize()));
        let fingerprint = u64::from_be_bytes(prefix(&blake3::hash(content)));
        Self { key, fingerprint }
    }

    fn to_bytes(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..16].copy_from_slice(&self.key.to_be_bytes());
        bytes[16..].copy_from_slice(&self.fingerprint.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_LEN]) -> Self {
        let mut key = [0; 16];
        let mut fingerprint = [0; 8];
        key.copy_from_slice(&bytes[..16]);
        fingerprint.copy_from_slice(&bytes[16..]);
        Self { key: u128::from_be_bytes(key), fingerprint: u64::from_be_bytes(fingerprint) }
    }
}

/// The first `N` bytes of a hash.
fn prefix<const N: usize>(hash: &blake3::Hash) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash.as_bytes()[..N]);
    bytes
}

/// Encodes the entries of one transaction for one partition as the value of one ledger record.
pub fn encode(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let entries = entries.into_iter();
    let mut value = Vec::with_capacity(1 + entries.size_hint().0 * ENTRY_LEN);
    value.push(VERSION);
    for entry in entries {
        value.extend_from_slice(&entry.to_bytes());
    }
    value
}

/// Reads the entries of a ledger record, in the order they were accepted.
///
/// # Errors
/// [`LedgerError`] if the record is empty, of another version or cut short; then none of it is used.
pub fn decode(value: &[u8]) -> Result<impl Iterator<Item = Entry> + '_, LedgerError> {
    let (version, entries) = value.split_first().ok_or(LedgerError::Empty)?;
    if *version != VERSION {
        return Err(LedgerError::UnknownVersion(*version));
    }
    let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
    if !rest.is_empty() {
        return Err(LedgerError::Truncated(value.len() - 1));
    }
    Ok(entries.iter().map(Entry::from_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        prop::collection::vec(
            (any::<u128>(), any::<u64>()).prop_map(|(key, fingerprint)| Entry { key, fingerprint }),
            0..50,
        )
    }

    #[test]
    fn layout_is_version_then_big_endian_entries() {
        let value = encode([Entry { key: 1, fingerprint: 2 }]);
        assert_eq!(value[0], VERSION);
        assert_eq!(value[16], 1, "last byte of the key");
        assert_eq!(value[24], 2, "last byte of the fingerprint");
        assert_eq!(value.len(), 1 + ENTRY_LEN);
    }

    #[test]
    fn same_id_with_other_content_differs_in_the_fingerprint_alone() {
        let id = PacketId([7; 16]);
        let (one, other) = (Entry::new("repo", &id, b"one"), Entry::new("repo", &id, b"other"));
        assert_eq!(one.key, other.key);
        assert_ne!(one.fingerprint, other.fingerprint);
        assert_ne!(one.key, Entry::new("repository", &id, b"one").key, "ids belong to one repository");
    }

    #[test]
    fn unreadable_records_say_why() {
        assert_eq!(decode(&[]).err(), Some(LedgerError::Empty));
        assert_eq!(decode(&[2, 0, 0]).err(), Some(LedgerError::UnknownVersion(2)));
        assert_eq!(decode(&[1]).map(Iterator::count), Ok(0));
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(entries in entries()) {
            let decoded: Vec<Entry> = decode(&encode(entries.clone())).unwrap().collect();
            prop_assert_eq!(decoded, entries);
        }

        #[test]
        fn a_cut_record_yields_whole_entries_or_nothing(entries in entries(), cut in any::<prop::sample::Index>()) {
            let value = encode(entries.clone());
            let cut = cut.index(value.len());
            match decode(&value[..cut]) {
                Ok(decoded) => prop_assert_eq!(decoded.collect::<Vec<_>>(), entries[..(cut - 1) / ENTRY_LEN].to_vec()),
                Err(LedgerError::Empty) => prop_assert_eq!(cut, 0),
                Err(LedgerError::Truncated(len)) => prop_assert!(len % ENTRY_LEN != 0),
                Err(LedgerError::UnknownVersion(_)) => prop_assert!(false, "the version is whole"),
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entries) = decode(&value) {
                prop_assert_eq!(encode(entries), value.clone());
            }
        }
    }
}
