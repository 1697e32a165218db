//! Files to packets and back: gzip, metadata, derived id.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content};
use flate2::read::MultiGzDecoder;
use flate2::{Compression, GzBuilder};

use crate::source::{STDIN, Source};

/// Metadata key under which a packet keeps its file's path.
pub(crate) const PATH: &str = "path";

/// Why a file is not sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Skip {
    #[error("cannot read: {0}")]
    Unreadable(String),
    #[error("not a regular file")]
    NotRegular,
    #[error("{0} bytes: over the {1} a packet may hold unpacked")]
    TooLarge(u64, u64),
    #[error("{0} bytes compressed: over the {1} a packet may hold")]
    TooLargeCompressed(u64, u64),
    #[error("{0}")]
    Unacceptable(String),
}

/// A packet with what is needed to recognise its content later.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) packet: CodePacket,
    pub(crate) id: PacketId,
    /// Unpacked size in bytes.
    pub(crate) raw_bytes: u64,
    /// BLAKE3 of the unpacked content.
    pub(crate) hash: blake3::Hash,
}

impl From<io::Error> for Skip {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Makes packets of one repository.
pub(crate) struct Packer {
    pub(crate) repo_id: String,
    /// Metadata of every packet, beside its path.
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) created_at: SystemTime,
    pub(crate) limits: PacketLimits,
    /// Skip what ingest would refuse for its content, such as a file of zeros that looks like a bomb.
    pub(crate) strict: bool,
}

impl Packer {
    /// Reads and packs one file. The id is derived here, so that every retry carries the same one.
    pub(crate) fn pack(&self, source: &Source) -> Result<Packed, Skip> {
        let content = self.read(&source.file)?;
        let compressed = gzip(&content)?;
        let content_max = self.limits.content_max.as_u64();
        if compressed.len() as u64 > content_max {
            return Err(Skip::TooLargeCompressed(compressed.len() as u64, content_max));
        }
        if self.strict {
            check_content(&compressed, &self.limits).map_err(|violation| Skip::Unacceptable(violation.description))?;
        }
        let mut metadata = self.metadata.clone();
        if source.label != STDIN {
            metadata.entry(PATH.to_owned()).or_insert_with(|| source.label.clone());
        }
        let id = PacketId::derive(&self.repo_id, &compressed, &metadata);
        let packet = CodePacket {
            repo_id: self.repo_id.clone(),
            content: compressed.into(),
            metadata,
            packet_id: id.to_bytes(),
            created_at: Some(self.created_at.into()),
        };
        Ok(Packed { packet, id, raw_bytes: content.len() as u64, hash: blake3::hash(&content) })
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, Skip> {
        let limit = self.limits.expanded_max.as_u64();
        let mut content = Vec::new();
        if file.as_os_str() == STDIN {
            io::stdin().lock().take(limit + 1).read_to_end(&mut content)?;
        } else if fs::symlink_metadata(file)?.is_file() {
            File::open(file)?.take(limit + 1).read_to_end(&mut content)?;
        } else {
            return Err(Skip::NotRegular);
        }
        if content.len() as u64 > limit {
            let size = fs::metadata(file).map_or(content.len() as u64, |metadata| metadata.len());
            return Err(Skip::TooLarge(size, limit));
        }
        Ok(content)
    }
}

/// gzip without a time, name or system in its header: the same bytes for the same content, on every machine.
fn gzip(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(content)?;
    encoder.finish()
}

/// The unpacked content, all gzip members of it; an error past `limit` bytes.
pub(crate) fn gunzip(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    MultiGzDecoder::new(packed).take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("more than {limit} bytes unpacked")));
    }
    Ok(content)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::PathBuf;

    pub(crate) fn packer() -> Packer {
        Packer {
            repo_id: "team/relay".to_owned(),
            metadata: BTreeMap::new(),
            created_at: SystemTime::UNIX_EPOCH,
            limits: PacketLimits::default(),
            strict: false,
        }
    }

    fn source(folder: &Path, label: &str, content: &[u8]) -> Source {
        let file = folder.join(label);
        fs::write(&file, content).unwrap();
        Source { label: label.to_owned(), file }
    }

    #[test]
    fn the_same_file_is_the_same_packet_and_another_path_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (source(folder.path(), "a", b"same"), source(folder.path(), "b", b"same"));
        let packer = packer();
        let first = packer.pack(&a).unwrap();
        assert_eq!(first.packet, packer.pack(&a).unwrap().packet);
        assert_ne!(first.id, packer.pack(&b).unwrap().id);
        assert_eq!(first.packet.metadata[PATH], "a");
        assert_eq!(first.packet.packet_id, first.id.to_bytes());
    }

    #[test]
    fn content_survives_the_round_trip_even_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"fn main() {}", &vec![0; 100_000]] {
            let packed = packer().pack(&source(folder.path(), "f", content)).unwrap();
            let unpacked = gunzip(&packed.packet.content, 1 << 20).unwrap();
            assert_eq!(unpacked, content);
            assert_eq!(blake3::hash(&unpacked), packed.hash);
            assert_eq!(packed.raw_bytes, content.len() as u64);
        }
    }

    #[test]
    fn what_cannot_be_a_packet_is_skipped_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let mut small = packer();
        small.limits.content_max = bytesize::ByteSize::b(100);
        let noise: Vec<u8> = (0..200_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let skip = small.pack(&source(folder.path(), "noise", &noise)).unwrap_err();
        assert!(matches!(skip, Skip::TooLargeCompressed(_, 100)), "{skip}");

        small.limits.expanded_max = bytesize::ByteSize::b(50);
        let skip = small.pack(&source(folder.path(), "zeros", &[0; 51])).unwrap_err();
        assert!(matches!(skip, Skip::TooLarge(51, 50)), "{skip}");

        let zeros = source(folder.path(), "bomb", &vec![0; 1 << 20]);
        assert!(packer().pack(&zeros).is_ok(), "ingest is the judge");
        let skip = Packer { strict: true, ..packer() }.pack(&zeros).unwrap_err();
        assert!(matches!(skip, Skip::Unacceptable(_)), "{skip}");

        let link = folder.path().join("link");
        std::os::unix::fs::symlink("noise", &link).unwrap();
        let skip = packer().pack(&Source { label: "link".into(), file: link }).unwrap_err();
        assert!(matches!(skip, Skip::NotRegular));
        let skip = packer().pack(&Source { label: "gone".into(), file: PathBuf::from("/gone") }).unwrap_err();
        assert!(matches!(skip, Skip::Unreadable(_)));
    }

    #[test]
    fn unpacking_stops_at_the_limit() {
        assert!(gunzip(&gzip(&[0; 1000]).unwrap(), 999).is_err());
        let mut two = gzip(b"first ").unwrap();
        two.extend(gzip(b"second").unwrap());
        assert_eq!(gunzip(&two, 100).unwrap(), b"first second");
    }
}
