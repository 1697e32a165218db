//! The idempotency key of a packet, and how to derive one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// Length of a packet id in bytes.
pub const PACKET_ID_LEN: usize = 16;

/// The idempotency key of a packet: 16 bytes, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub [u8; PACKET_ID_LEN]);

/// These bytes, or this text, are no packet id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPacketId {
    /// Not 16 bytes.
    #[error("a packet id has 16 bytes, not {0}")]
    Length(usize),
    /// Not 32 hexadecimal digits.
    #[error("a packet id is written as 32 hexadecimal digits, not {0:?}")]
    Text(String),
}

impl PacketId {
    /// Reads an id from the wire.
    ///
    /// # Errors
    /// [`InvalidPacketId::Length`] unless there are exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidPacketId> {
        bytes.try_into().map(Self).map_err(|_| InvalidPacketId::Length(bytes.len()))
    }

    /// Derives the id of a packet that came without one: the first 16 bytes of
    /// `BLAKE3(le64(len(repo_id)) repo_id le64(len(content)) content le64(entries) {le64(len(k)) k le64(len(v)) v})`,
    /// the metadata entries in the order of their keys' bytes.
    ///
    /// Length prefixes keep neighbouring fields apart, the order of the map on the wire is irrelevant, and `content` is
    /// hashed as received (compressed), so a producer that compresses differently makes another packet.
    pub fn derive(repo_id: &str, content: &[u8], metadata: &BTreeMap<String, String>) -> Self {
        let mut hasher = blake3::Hasher::new();
        update_prefixed(&mut hasher, repo_id.as_bytes());
        update_prefixed(&mut hasher, content);
        hasher.update(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            update_prefixed(&mut hasher, key.as_bytes());
            update_prefixed(&mut hasher, value.as_bytes());
        }

        let mut id = [0; PACKET_ID_LEN];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..PACKET_ID_LEN]);
        Self(id)
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; PACKET_ID_LEN] {
        &self.0
    }

    /// The 16 bytes as a field of a message.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketId({self})")
    }
}

impl FromStr for PacketId {
    type Err = InvalidPacketId;

    fn from_str(text: &str) -> Result<Self, InvalidPacketId> {
        let invalid = || InvalidPacketId::Text(text.to_owned());
        // from_str_radix alone would take a sign and fewer digits.
        if text.len() != 2 * PACKET_ID_LEN || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| invalid())
    }
}

impl From<[u8; PACKET_ID_LEN]> for PacketId {
    fn from(bytes: [u8; PACKET_ID_LEN]) -> Self {
        Self(bytes)
    }
}

/// Hashes `bytes` behind their length, so that neighbouring fields cannot lend each other bytes.
pub(crate) fn update_prefixed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata(entries: &[(String, String)]) -> BTreeMap<String, String> {
        entries.iter().cloned().collect()
    }

    #[test]
    fn text_and_bytes_say_the_same() {
        let id = PacketId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("000102030405060708090A0B0C0D0EFF".parse(), Ok(id));
        assert_eq!(PacketId::from_slice(&id.to_bytes()), Ok(id));
    }

    #[test]
    fn other_lengths_and_other_characters_are_refused() {
        assert_eq!(PacketId::from_slice(&[0; 15]), Err(InvalidPacketId::Length(15)));
        assert_eq!(PacketId::from_slice(&[]), Err(InvalidPacketId::Length(0)));
        for text in ["", "00", "+00102030405060708090a0b0c0d0eff", "g00102030405060708090a0b0c0d0eff"] {
            assert_eq!(text.parse::<PacketId>(), Err(InvalidPacketId::Text(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn order_of_metadata_does_not_matter(
            (entries, shuffled) in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..8)
                .prop_map(|map| map.into_iter().collect::<Vec<_>>())
                .prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
        ) {
            prop_assert_eq!(
                PacketId::derive("r", b"c", &metadata(&entries)),
                PacketId::derive("r", b"c", &metadata(&shuffled))
            );
        }

        #[test]
        fn bytes_cannot_move_between_fields(text in "[a-z]{2,40}", one in any::<prop::sample::Index>(), other in any::<prop::sample::Index>()) {
            let (one, other) = (one.index(text.len() + 1), other.index(text.len() + 1));
            prop_assume!(one != other);
            let derive = |at: usize| PacketId::derive(&text[..at], &text.as_bytes()[at..], &BTreeMap::new());
            prop_assert_ne!(derive(one), derive(other));
            let derive = |at: usize| PacketId::derive("r", b"c", &metadata(&[(text[..at].into(), text[at..].into())]));
            prop_assert_ne!(derive(one), derive(other));
        }

        #[test]
        fn every_field_counts(repo_id in ".{1,20}", content in prop::collection::vec(any::<u8>(), 0..100), key in ".{0,5}", value in ".{0,5}") {
            let plain = PacketId::derive(&repo_id, &content, &BTreeMap::new());
            let with_entry = PacketId::derive(&repo_id, &content, &metadata(&[(key, value)]));
            let other_repo = PacketId::derive(&format!("{repo_id}x"), &content, &BTreeMap::new());
            let other_content = PacketId::derive(&repo_id, &[content.as_slice(), b"x"].concat(), &BTreeMap::new());
            prop_assert!(plain != with_entry && plain != other_repo && plain != other_content);
        }
    }
}
