//! Files to ingest, all the way: packed on one thread, published on another, every file accounted for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use prost::Message as _;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::packer::{Packed, Packer, Skip};
use crate::position::rfc3339;
use crate::progress::Progress;
use crate::publisher::{Ack, Event, GaveUp, Publisher};
use crate::record::created_at_ms;
use crate::source::Source;
use crate::window::{Parcel, Receipt};

/// Packets packed ahead of the stream.
const PACKED_AHEAD: usize = 64;

/// What one packet was, after its bytes are gone.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) id: PacketId,
    /// BLAKE3 of the file.
    pub(crate) hash: blake3::Hash,
    /// Size of the file.
    pub(crate) raw_bytes: u64,
    /// Size of the protobuf message.
    pub(crate) packet_bytes: u64,
    /// Size of the same message in protobuf's JSON mapping.
    pub(crate) json_bytes: u64,
}

/// What became of every file.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// One per source, in their order; fewer where publishing was given up.
    pub(crate) manifests: Vec<Result<Manifest, Skip>>,
    /// One per packet with an outcome; `tag` is the source's index.
    pub(crate) receipts: Vec<Receipt>,
    /// One an endpoint, in their order.
    pub(crate) endpoints: Vec<Acknowledged>,
    pub(crate) reconnections: usize,
    pub(crate) gave_up: Option<GaveUp>,
    pub(crate) took: Duration,
}

/// What one endpoint did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Acknowledged {
    pub(crate) endpoint: String,
    /// Packets that it acknowledged.
    pub(crate) committed: usize,
}

impl Delivery {
    /// The packets that were made, with the index of their source.
    pub(crate) fn packed(&self) -> impl Iterator<Item = (usize, &Manifest)> {
        self.manifests.iter().enumerate().filter_map(|(tag, manifest)| Some((tag, manifest.as_ref().ok()?)))
    }

    /// The files that were not sent, with the reason.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (usize, &Skip)> {
        self.manifests.iter().enumerate().filter_map(|(tag, manifest)| Some((tag, manifest.as_ref().err()?)))
    }
}

/// Packs and publishes all sources, to the first endpoint that takes them. Refused packets are receipts;
/// [`Delivery::gave_up`] says if the rest has no outcome.
///
/// # Errors
/// When a thread of it panics.
pub(crate) async fn deliver(
    packer: Arc<Packer>,
    sources: Arc<[Source]>,
    channels: Vec<(String, Channel)>,
    ack: Option<Ack>,
    patience: Duration,
    what: &'static str,
) -> anyhow::Result<Delivery> {
    let started = Instant::now();
    let acknowledged = |(endpoint, _): &(String, Channel)| Acknowledged { endpoint: endpoint.clone(), committed: 0 };
    let mut endpoints: Vec<_> = channels.iter().map(acknowledged).collect();
    let publisher = Publisher::new(channels, ack, patience);
    let mut progress = Progress::new(what, sources.len() as u64);
    let mut receipts = Vec::with_capacity(sources.len());
    let mut reconnections = 0;

    let (parcels, queue) = mpsc::channel(PACKED_AHEAD);
    let packing = tokio::task::spawn_blocking(move || pack_all(&packer, &sources, &parcels));
    let publishing = publisher.run(queue, |event| match event {
        Event::Settled(endpoint, receipt) => {
            endpoints[endpoint].committed += usize::from(receipt.outcome.is_ok());
            progress.advance(1);
            progress.message("");
            receipts.push(receipt);
        }
        Event::Reconnecting(status) => {
            reconnections += 1;
            progress.message(format!("reconnecting: {}", status.message()));
        }
        Event::Moved { from, to, error } => {
            reconnections += 1;
            progress.remark(&format!("{from}: {} ({:?}); going on at {to}", error.message(), error.code()));
        }
    });
    let (outcome, manifests) = tokio::join!(publishing, packing);
    let (manifests, gave_up) = (manifests?, outcome.err());
    Ok(Delivery { manifests, receipts, endpoints, reconnections, gave_up, took: started.elapsed() })
}

/// Packs files in their order and hands them to the stream; stops early where the stream is gone.
fn pack_all(packer: &Packer, sources: &[Source], parcels: &mpsc::Sender<Parcel>) -> Vec<Result<Manifest, Skip>> {
    let mut manifests = Vec::with_capacity(sources.len());
    for (tag, source) in sources.iter().enumerate() {
        let result = packer.pack(source);
        manifests.push(result.as_ref().map(Manifest::of).map_err(Skip::clone));
        if let Ok(Packed { packet, .. }) = result
            && parcels.blocking_send(Parcel { tag, packet }).is_err()
        {
            break;
        }
    }
    manifests
}

impl Manifest {
    fn of(packed: &Packed) -> Self {
        Self {
            id: packed.id,
            hash: packed.hash,
            raw_bytes: packed.raw_bytes,
            packet_bytes: packed.packet.encoded_len() as u64,
            json_bytes: json_bytes(&packed.packet),
        }
    }
}

/// Size of a packet in protobuf's canonical JSON mapping: bytes in base64, times in RFC 3339.
fn json_bytes(packet: &CodePacket) -> u64 {
    let created_at = created_at_ms(packet);
    let json = json!({
        "repoId": packet.repo_id,
        "content": BASE64_STANDARD.encode(&packet.content),
        "metadata": packet.metadata,
        "packetId": BASE64_STANDARD.encode(&packet.packet_id),
        "createdAt": rfc3339(created_at),
    });
    json.to_string().len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn every_source_has_a_manifest_or_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "content").unwrap();
        let sources =
            [Source { label: "a".into(), file }, Source { label: "gone".into(), file: PathBuf::from("/gone") }];
        let (parcels, mut queue) = mpsc::channel(4);
        let manifests = pack_all(&crate::packer::tests::packer(), &sources, &parcels);
        assert_eq!(manifests.len(), 2);
        let manifest = manifests[0].as_ref().unwrap();
        assert_eq!(manifest.raw_bytes, 7);
        assert!(manifest.json_bytes > manifest.packet_bytes);
        assert!(matches!(manifests[1], Err(Skip::Unreadable(_))));
        assert_eq!(queue.try_recv().unwrap().tag, 0);
        assert!(queue.try_recv().is_err(), "what is skipped is not sent");
    }
}
