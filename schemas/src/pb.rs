//! The messages and services of package `coderelay.v1`, generated from `proto/`.
//!
//! `bytes` fields are [`bytes::Bytes`], maps are `BTreeMap` (so that a message has one encoding), and `google.rpc.Status` is [`tonic_types::pb::Status`].

// The comments live in the `.proto` files; what the generators write is not held to this workspace's style.
#![allow(missing_docs, unreachable_pub, clippy::pedantic)]

tonic::include_proto!("coderelay.v1");

/// The compiled `.proto` files with everything they import, as an encoded `google.protobuf.FileDescriptorSet`: for
/// gRPC reflection and for readers without generated code. The same bytes are in `dist/coderelay.v1.fds.binpb`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/coderelay.v1.fds.binpb"));
