//! Headers of the records in `code.packets.v1` and `code.packets.deduped.v1`.

/// The packet's id as 32 lower-case hexadecimal digits.
pub const PACKET_ID: &str = "packet-id";
/// W3C trace context of the request that brought the packet.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state, if the request had one.
pub const TRACESTATE: &str = "tracestate";
/// The region whose ingest took the packet.
pub const REGION: &str = "region";
/// Media type of the value, always [`CONTENT_TYPE_PROTOBUF`].
pub const CONTENT_TYPE: &str = "content-type";
/// Message type of the value, always [`SCHEMA_CODE_PACKET`].
pub const SCHEMA: &str = "schema";
/// What has been verified already, [`CHECKED_GZIP`] if the content was. The processor verifies records without it.
pub const CHECKED: &str = "checked";

/// Value of [`CONTENT_TYPE`].
pub const CONTENT_TYPE_PROTOBUF: &str = "application/x-protobuf";
/// Value of [`SCHEMA`].
pub const SCHEMA_CODE_PACKET: &str = "coderelay.v1.CodePacket";
/// Value of [`CHECKED`]: the content was inflated to its end, within the limits.
pub const CHECKED_GZIP: &str = "gzip";
