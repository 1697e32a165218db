//! The load's packets, made before anything is measured: making them is not part of any limit.

use anyhow::Result;
use bytes::Bytes;
use coderelay_schemas::pb::{CodePacket, PublishRequest};
use prost::Message as _;

use crate::corpus::{Corpus, CorpusSpec};

/// Packets in a row of one repository.
pub(super) const BURST: usize = 100;
/// Bursts of the pool: 20 MB of packets, more than any cache holds.
const BURSTS: usize = 200;

/// Some packets of the load, whole and encoded.
#[derive(Debug)]
pub(super) struct Pool {
    /// In bursts of [`BURST`].
    pub(super) packets: Vec<CodePacket>,
    /// The values of their records.
    pub(super) values: Vec<Bytes>,
}

impl Pool {
    pub(super) fn new() -> Result<Self> {
        let corpus = Corpus::new(CorpusSpec { burst: BURST as u64, ..CorpusSpec::default() })?;
        let packets: Vec<_> = (0..(BURST * BURSTS) as u64).map(|n| corpus.packet(n)).collect();
        let values = packets.iter().map(|packet| packet.encode_to_vec().into()).collect();
        Ok(Self { packets, values })
    }

    /// Encoded requests of `per_request` packets each. A client's own work of encoding them is then not part of the limit.
    pub(super) fn requests(&self, per_request: usize) -> Vec<Bytes> {
        let request = |packets: &[CodePacket]| PublishRequest { seq: 0, packets: packets.to_vec() };
        self.packets.chunks_exact(per_request).map(|packets| request(packets).encode_to_vec().into()).collect()
    }
}
