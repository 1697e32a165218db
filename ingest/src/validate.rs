//! From bytes that claim to be a packet to a packet that keeps every rule.
//!
//! Content is inflated to its end, which costs time in proportion to what it expands to. Small content is verified where
//! it is read; large content on the blocking pool, as many at a time as there are cores, so that one 4 MiB packet does not
//! hold up the streams that share its worker thread.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, Reason, Violation, check_content, check_fields, complete};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::task::{spawn_blocking, yield_now};

use crate::wire::{TextField, non_utf8_field};

/// Compressed bytes up to which content is verified in place. At the ratio limit of 200:1 that is some 5 ms.
const INLINE: usize = 64 * 1024;

/// Verified in place without letting other tasks run.
const YIELD_EVERY: usize = 256 * 1024;

/// Checks packets against the limits.
#[derive(Debug, Clone)]
pub struct Validator {
    limits: Arc<PacketLimits>,
    /// Verifications on the blocking pool at one time.
    blocking: Arc<Semaphore>,
}

/// A packet that may be produced.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// Its id, the producer's or the derived one.
    pub id: PacketId,
    /// With `packet_id` and `created_at` filled in.
    pub packet: CodePacket,
}

/// A packet that breaks rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Invalid {
    /// The producer's id, if it had sent one.
    pub id: Option<PacketId>,
    /// Every broken rule.
    pub violations: Vec<Violation>,
}

/// Progress through one request, to yield between packets.
#[derive(Debug, Default)]
pub struct Pace {
    verified: usize,
}

impl Validator {
    /// A validator for these limits.
    pub fn new(limits: PacketLimits) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { limits: Arc::new(limits), blocking: Arc::new(Semaphore::new(cores)) }
    }

    /// Decodes, checks and completes one packet.
    ///
    /// # Errors
    /// [`Invalid`] with every rule the packet breaks. Content is looked into only if the cheap checks passed.
    pub async fn check(&self, raw: Bytes, now: SystemTime, pace: &mut Pace) -> Result<Valid, Invalid> {
        let mut packet = match CodePacket::decode(raw.clone()) {
            Ok(packet) => packet,
            Err(error) => return Err(Invalid { id: None, violations: vec![undecodable(raw, &error)] }),
        };
        let verdict = match check_fields(&packet, &self.limits) {
            Ok(()) => self.verify(&packet.content, pace).await.map_err(|violation| vec![violation]),
            Err(violations) => Err(violations),
        };
        match verdict {
            Ok(()) => Ok(Valid { id: complete(&mut packet, now, &self.limits), packet }),
            Err(violations) => Err(Invalid { id: PacketId::from_slice(&packet.packet_id).ok(), violations }),
        }
    }

    async fn verify(&self, content: &Bytes, pace: &mut Pace) -> Result<(), Violation> {
        if content.len() <= INLINE {
            pace.verified += content.len();
            if pace.verified > YIELD_EVERY {
                pace.verified = 0;
                yield_now().await;
            }
            return check_content(content, &self.limits).map(drop);
        }
        let _turn = self.blocking.acquire().await;
        let (content, limits) = (content.clone(), Arc::clone(&self.limits));
        let verdict = spawn_blocking(move || check_content(&content, &limits)).await;
        verdict.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).map(drop)
    }
}

fn undecodable(raw: Bytes, error: &prost::DecodeError) -> Violation {
    let (field, reason, description) = match non_utf8_field(raw) {
        Some(TextField::RepoId) => ("repo_id", Reason::RepoIdNotUtf8, "is not valid UTF-8".to_owned()),
        Some(TextField::Metadata) => ("metadata", Reason::MetadataNotUtf8, "is not valid UTF-8".to_owned()),
        None => ("packet", Reason::PacketMalformed, error.to_string()),
    };
    Violation { field, reason, description }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap().into()
    }

    fn packet() -> CodePacket {
        CodePacket { repo_id: "acme/api".into(), content: gzip(b"fn main() {}"), ..Default::default() }
    }

    async fn check(raw: impl Into<Bytes>) -> Result<Valid, Invalid> {
        Validator::new(PacketLimits::default()).check(raw.into(), SystemTime::now(), &mut Pace::default()).await
    }

    #[tokio::test]
    async fn a_packet_with_three_fields_is_completed() {
        let valid = check(packet().encode_to_vec()).await.unwrap();
        assert_eq!(valid.packet.packet_id, valid.id.to_bytes());
        assert!(valid.packet.created_at.is_some());
    }

    #[tokio::test]
    async fn text_that_is_not_utf8_is_named_by_field() {
        let invalid = check(&b"\x0a\x02\xff\xfe"[..]).await.unwrap_err();
        assert_eq!((invalid.violations[0].field, invalid.violations[0].reason), ("repo_id", Reason::RepoIdNotUtf8));
    }

    #[tokio::test]
    async fn bytes_that_are_no_packet_are_malformed() {
        let invalid = check(&b"\x0a\x7fshort"[..]).await.unwrap_err();
        assert_eq!(invalid.violations[0].reason, Reason::PacketMalformed);
    }

    #[tokio::test]
    async fn a_refused_packet_keeps_the_id_it_came_with() {
        let bad = CodePacket { content: Bytes::from_static(b"plain"), packet_id: vec![7; 16].into(), ..packet() };
        let invalid = check(bad.encode_to_vec()).await.unwrap_err();
        assert_eq!(invalid.id, Some(PacketId([7; 16])));
        assert_eq!(invalid.violations[0].reason, Reason::ContentNotGzip);
    }

    #[tokio::test]
    async fn large_content_is_verified_like_small() {
        let noise: Vec<u8> = (0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut large = CodePacket { content: gzip(&noise), ..packet() };
        assert!(large.content.len() > INLINE);
        assert!(check(large.encode_to_vec()).await.is_ok());
        large.content = large.content.slice(..large.content.len() - 5);
        assert_eq!(check(large.encode_to_vec()).await.unwrap_err().violations[0].reason, Reason::ContentCorrupt);
    }
}
