//! The checked-in descriptor set is what the `.proto` files say, and old decoders read new packets.

use std::path::Path;

use bytes::Bytes;
use coderelay_schemas::FILE_DESCRIPTOR_SET;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_fields};
use prost::Message;
use prost_types::FileDescriptorSet;

/// Run with `UPDATE=1` to write the file anew after a change of the `.proto` files.
#[test]
fn the_checked_in_descriptor_set_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/coderelay.v1.fds.binpb");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, FILE_DESCRIPTOR_SET).unwrap();
    }
    let checked_in = std::fs::read(&path).unwrap_or_default();
    assert!(
        checked_in == FILE_DESCRIPTOR_SET,
        "{} is stale: UPDATE=1 cargo test -p coderelay-schemas --test descriptors",
        path.display()
    );
}

#[test]
fn the_descriptor_set_is_complete_and_in_order() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut seen = Vec::new();
    for file in &set.file {
        for import in &file.dependency {
            assert!(seen.contains(import), "{} imports {import}, which is not before it", file.name());
        }
        seen.push(file.name().to_owned());
    }
    for name in ["coderelay/v1/packet.proto", "coderelay/v1/ingest.proto", "google/rpc/error_details.proto"] {
        assert!(seen.iter().any(|file| file == name), "{name} is missing");
    }
}

/// A reader of the original format, which had three fields.
#[derive(Clone, PartialEq, Message)]
struct OriginalPacket {
    #[prost(string, tag = "1")]
    repo_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    content: Bytes,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: std::collections::BTreeMap<String, String>,
}

fn packet() -> CodePacket {
    CodePacket {
        repo_id: "github.com/example/repo".to_owned(),
        content: Bytes::from_static(b"\x1f\x8b"),
        metadata: [("path".to_owned(), "src/main.rs".to_owned())].into(),
        packet_id: Bytes::from_static(&[7; 16]),
        created_at: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 5 }),
    }
}

#[test]
fn a_decoder_of_the_original_three_fields_reads_a_packet() {
    let CodePacket { repo_id, content, metadata, .. } = packet();
    let original = OriginalPacket::decode(packet().encode_to_vec().as_slice()).unwrap();
    assert_eq!(original, OriginalPacket { repo_id, content, metadata });
}

#[test]
fn a_packet_of_the_original_three_fields_is_accepted() {
    let CodePacket { repo_id, content, metadata, .. } = packet();
    let original = OriginalPacket { repo_id, content, metadata };
    let read = CodePacket::decode(original.encode_to_vec().as_slice()).unwrap();
    assert_eq!(read, CodePacket { packet_id: Bytes::new(), created_at: None, ..packet() });
    assert_eq!(check_fields(&read, &PacketLimits::default()), Ok(()));
}

#[test]
fn content_is_a_slice_of_the_received_buffer() {
    let buffer = Bytes::from(packet().encode_to_vec());
    let read = CodePacket::decode(buffer.clone()).unwrap();
    assert!(buffer.as_ptr_range().contains(&read.content.as_ptr()), "decoding must not copy the content");
}
