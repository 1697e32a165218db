//! Requests as they lie on the wire: a sequence number and packets that are not decoded yet.
//!
//! The generated types would decode every packet of a request together, and one `repo_id` that is not UTF-8 would fail
//! its neighbours and the stream. Here a packet stays a slice of the request's buffer (no copy) until it is looked at
//! by itself.

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use thiserror::Error;

/// Which call a message belongs to: the two request messages number their fields differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `Publish(stream PublishRequest)`
    Publish,
    /// `PublishBatch(PublishBatchRequest)`
    PublishBatch,
}

impl Call {
    const fn seq_field(self) -> Option<u32> {
        match self {
            Self::Publish => Some(1),
            Self::PublishBatch => None,
        }
    }

    const fn packets_field(self) -> u32 {
        match self {
            Self::Publish => 2,
            Self::PublishBatch => 1,
        }
    }

    /// The call's name in spans and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publish => "Publish",
            Self::PublishBatch => "PublishBatch",
        }
    }
}

/// A request whose packets are still encoded: counted, and found again when their turn comes. A list of them would take sixteen
/// times the bytes of a request whose packets are empty, outside every budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRequest {
    /// Sequence of the first packet; packet k has `seq + k`. 0 for `PublishBatch`.
    pub seq: u64,
    /// How many packets there are.
    pub count: usize,
    call: Call,
    message: Bytes,
}

/// The fields of a request that mean something.
enum Field {
    Seq(u64),
    Packet(Bytes),
}

/// Why a request could not be taken apart. The whole call fails: its packets cannot be told apart.
#[derive(Debug, Error, PartialEq)]
pub enum RequestError {
    /// Not a protobuf message, or not of this type.
    #[error("the request is not a valid protobuf message: {0}")]
    Malformed(#[from] DecodeError),
    /// More packets than one request may have.
    #[error("the request has more than {limit} packets: split it")]
    TooManyPackets {
        /// `grpc.max_packets`
        limit: usize,
    },
}

impl RawRequest {
    /// Takes a request message apart. Unknown fields are skipped, as protobuf demands.
    ///
    /// # Errors
    /// Bytes that are no such message, and more than `max_packets` packets (checked while reading: eight million empty
    /// packets fit into 16 MiB).
    pub fn decode(call: Call, message: Bytes, max_packets: usize) -> Result<Self, RequestError> {
        let (mut seq, mut count) = (0, 0);
        let mut rest = message.clone();
        while let Some(field) = Field::next(call, &mut rest)? {
            match field {
                Field::Seq(sent) => seq = sent,
                Field::Packet(_) if count == max_packets => {
                    return Err(RequestError::TooManyPackets { limit: max_packets });
                }
                Field::Packet(_) => count += 1,
            }
        }
        Ok(Self { seq, count, call, message })
    }

    /// Every packet as one encoded `CodePacket`, in order.
    pub fn packets(self) -> impl Iterator<Item = Bytes> {
        let Self { call, mut message, .. } = self;
        // The message was read to its end when the packets were counted.
        let fields = std::iter::from_fn(move || Field::next(call, &mut message).ok().flatten());
        fields.filter_map(|field| match field {
            Field::Packet(packet) => Some(packet),
            Field::Seq(_) => None,
        })
    }
}

impl Field {
    fn next(call: Call, message: &mut Bytes) -> Result<Option<Self>, DecodeError> {
        while message.has_remaining() {
            let (field, wire_type) = decode_key(message)?;
            if field == call.packets_field() && wire_type == WireType::LengthDelimited {
                return Ok(Some(Self::Packet(length_delimited(message)?)));
            } else if Some(field) == call.seq_field() && wire_type == WireType::Varint {
                return Ok(Some(Self::Seq(decode_varint(message)?)));
            }
            skip_field(wire_type, field, message, DecodeContext::default())?;
        }
        Ok(None)
    }
}

/// A field of `CodePacket` that holds text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextField {
    /// `repo_id`
    RepoId,
    /// A key or a value of `metadata`
    Metadata,
}

/// The first field of an encoded `CodePacket` whose text is not UTF-8.
///
/// Called only when decoding failed, to name the culprit: prost's error type keeps no field.
pub fn non_utf8_field(mut packet: Bytes) -> Option<TextField> {
    while packet.has_remaining() {
        let (field, wire_type) = decode_key(&mut packet).ok()?;
        if wire_type == WireType::LengthDelimited && matches!(field, 1 | 3) {
            let value = length_delimited(&mut packet).ok()?;
            match field {
                1 if std::str::from_utf8(&value).is_err() => return Some(TextField::RepoId),
                3 if !is_utf8_entry(value) => return Some(TextField::Metadata),
                _ => {}
            }
        } else {
            skip_field(wire_type, field, &mut packet, DecodeContext::default()).ok()?;
        }
    }
    None
}

/// Whether key and value of a map entry are UTF-8. An entry that is malformed in another way counts as such: not this
/// function's finding.
fn is_utf8_entry(mut entry: Bytes) -> bool {
    while entry.has_remaining() {
        let Ok((field, WireType::LengthDelimited)) = decode_key(&mut entry) else { return true };
        let Ok(text) = length_delimited(&mut entry) else { return true };
        if matches!(field, 1 | 2) && std::str::from_utf8(&text).is_err() {
            return false;
        }
    }
    true
}

/// A length and that many bytes, shared with the buffer they come from.
fn length_delimited(buffer: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = decode_varint(buffer)?;
    match usize::try_from(length) {
        Ok(length) if length <= buffer.remaining() => Ok(buffer.split_to(length)),
        _ => Err(truncated()),
    }
}

/// prost keeps its error's constructor to itself; a varint that never ends yields one.
fn truncated() -> DecodeError {
    decode_varint(&mut Bytes::new()).err().unwrap_or_else(|| unreachable!("an empty buffer has no varint"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coderelay_schemas::pb;
    use proptest::prelude::*;
    use prost::Message;

    fn packet(repo_id: &str) -> pb::CodePacket {
        pb::CodePacket { repo_id: repo_id.into(), content: Bytes::from_static(b"x"), ..Default::default() }
    }

    #[test]
    fn packets_are_slices_of_the_request() {
        let request = pb::PublishRequest { seq: 7, packets: vec![packet("a"), packet("b")] };
        let raw = RawRequest::decode(Call::Publish, request.encode_to_vec().into(), 2).unwrap();
        assert_eq!((raw.seq, raw.count), (7, 2));
        let decoded: Vec<_> = raw.packets().map(|p| pb::CodePacket::decode(p).unwrap()).collect();
        assert_eq!(decoded, request.packets);
    }

    #[test]
    fn the_unary_request_has_packets_in_field_one() {
        let request = pb::PublishBatchRequest { packets: vec![packet("a")] };
        let raw = RawRequest::decode(Call::PublishBatch, request.encode_to_vec().into(), 10).unwrap();
        assert_eq!((raw.seq, raw.count), (0, 1));
    }

    #[test]
    fn an_empty_message_is_an_empty_request() {
        let raw = RawRequest::decode(Call::Publish, Bytes::new(), 1).unwrap();
        assert_eq!((raw.seq, raw.count, raw.packets().count()), (0, 0, 0));
    }

    #[test]
    fn too_many_packets_are_refused_while_reading() {
        let million = Bytes::from([0x12, 0x00].repeat(1_000_000));
        let refused = RawRequest::decode(Call::Publish, million, 1000);
        assert_eq!(refused, Err(RequestError::TooManyPackets { limit: 1000 }));
    }

    #[test]
    fn unknown_fields_are_skipped_and_truncation_is_named() {
        let mut bytes = pb::PublishRequest { seq: 1, packets: vec![packet("a")] }.encode_to_vec();
        bytes.extend([0x7a, 0x02, b'h', b'i']);
        assert_eq!(RawRequest::decode(Call::Publish, bytes.clone().into(), 9).unwrap().count, 1);
        bytes.pop();
        assert!(matches!(RawRequest::decode(Call::Publish, bytes.into(), 9), Err(RequestError::Malformed(_))));
    }

    #[test]
    fn text_that_is_not_utf8_is_traced_to_its_field() {
        assert_eq!(non_utf8_field(Bytes::from_static(b"\x0a\x02\xff\xfe")), Some(TextField::RepoId));
        assert_eq!(
            non_utf8_field(Bytes::from_static(b"\x0a\x01a\x1a\x06\x0a\x01\xff\x12\x01v")),
            Some(TextField::Metadata)
        );
        assert_eq!(non_utf8_field(Bytes::from_static(b"\x0a\x01a")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Ok(raw) = RawRequest::decode(Call::Publish, bytes.clone(), 10) {
                prop_assert_eq!(raw.count, raw.packets().count());
            }
            let _ = non_utf8_field(bytes);
        }

        /// What the generated types read, this reads too.
        #[test]
        fn requests_are_read_as_the_generated_types_read_them(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let bytes = Bytes::from(bytes);
            if let Ok(request) = pb::PublishRequest::decode(bytes.clone()) {
                let raw = RawRequest::decode(Call::Publish, bytes, 100).unwrap();
                prop_assert_eq!(raw.seq, request.seq);
                let packets: Vec<_> = raw.packets().map(|p| pb::CodePacket::decode(p).unwrap()).collect();
                prop_assert_eq!(packets, request.packets);
            }
        }
    }
}
