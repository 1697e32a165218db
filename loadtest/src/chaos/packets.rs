//! The packets of a seed: each a function of its number and of which of its contents it carries.

use std::collections::HashMap;
use std::io::Write;
use std::time::SystemTime;

use anyhow::Result;
use bytes::Bytes;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::plan::Version;

/// Repositories of a seed: several to a partition.
const REPOSITORIES: u32 = 40;
/// Contents that are ever sent under one id.
const CONTENTS: u8 = 3;

/// All packets of one seed.
#[derive(Debug)]
pub struct Packets {
    seed: u64,
    /// Of every packet: where a row is to be found depends on its day.
    created_at: SystemTime,
    numbers: HashMap<[u8; 16], u32>,
}

impl Packets {
    /// The first `count` packets of `seed`, made at `created_at`.
    pub fn new(seed: u64, count: u32, created_at: SystemTime) -> Self {
        let numbers = (0..count).map(|number| (*id(seed, number).as_bytes(), number)).collect();
        Self { seed, created_at, numbers }
    }

    /// A packet as its producer sends it.
    ///
    /// # Errors
    /// None that memory does not make.
    pub fn packet(&self, version: Version) -> Result<CodePacket> {
        let Version { packet, content } = version;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        // Incompressible enough to have sizes of their own.
        writeln!(gzip, "// seed {}, packet {packet}, content {content}", self.seed)?;
        for line in 0..packet % 7 {
            let hash = blake3::hash(&[packet.to_le_bytes(), line.to_le_bytes()].concat());
            writeln!(gzip, "const LINE_{line}: &str = \"{hash}\";")?;
        }
        Ok(CodePacket {
            repo_id: repository(self.seed, packet),
            content: Bytes::from(gzip.finish()?),
            metadata: [("path".to_owned(), format!("src/{packet}.rs"))].into(),
            packet_id: id(self.seed, packet).to_bytes(),
            created_at: Some(self.created_at.into()),
        })
    }

    /// Which packet `found` is, byte for byte; `None` if nobody sent such a one.
    ///
    /// # Errors
    /// As [`packet`](Self::packet).
    pub fn identify(&self, found: &CodePacket) -> Result<Option<Version>> {
        let Some(packet) = self.number(&found.packet_id) else { return Ok(None) };
        for content in 0..CONTENTS {
            let version = Version { packet, content };
            if self.packet(version)? == *found {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// The packet with this id.
    pub fn number(&self, packet_id: &[u8]) -> Option<u32> {
        self.numbers.get(packet_id).copied()
    }
}

fn id(seed: u64, packet: u32) -> PacketId {
    let hash = blake3::hash(&[&seed.to_le_bytes()[..], &packet.to_le_bytes()].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    PacketId(id)
}

fn repository(seed: u64, packet: u32) -> String {
    format!("chaos-{seed}/{}", packet % REPOSITORIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_known_again_and_nothing_else() {
        let packets = Packets::new(1, 10, SystemTime::now());
        for content in 0..CONTENTS {
            let version = Version { packet: 3, content };
            assert_eq!(packets.identify(&packets.packet(version).unwrap()).unwrap(), Some(version));
        }
        let mut altered = packets.packet(Version { packet: 3, content: 0 }).unwrap();
        altered.metadata.clear();
        assert_eq!(packets.identify(&altered).unwrap(), None);
        let other = Packets::new(2, 10, SystemTime::now()).packet(Version { packet: 3, content: 0 }).unwrap();
        assert_eq!(packets.identify(&other).unwrap(), None);
    }
}
