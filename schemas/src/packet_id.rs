//! The idempotency key of a packet, and how to derive one.

use std::collections::HashMap;
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
    /// Length prefixes keep neighbouring fields apart, sorting makes the order of the map irrelevant, and `content` is
    /// hashed as received (compressed), so a producer that compresses differently makes another packet.
    pub fn derive(repo_id: &str, content: &[u8], metadata: &HashMap<String, String>) -> Self {
        let mut entries: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        entries.sort_unstable();

        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(repo_id.as_bytes());
        field(content);
        hasher.update(&(entries.len() as u64).to_le_bytes());
        for (key, value) in entries {
            let mut field = |bytes: &[u8]| {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            };
            field(key.as_bytes());
            field(value.as_bytes());
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
