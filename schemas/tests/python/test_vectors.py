"""The vectors in ``schemas/vectors`` hold for an implementation that shares no code with the Rust one.

pip install -r schemas/examples/python/requirements.txt pytest
pytest schemas/tests/python
"""

import base64
import json
import pathlib
import sys
import zlib

import pytest
from blake3 import blake3
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SCHEMAS = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SCHEMAS / "examples" / "python"))
import coderelay  # noqa: E402


def vectors(name):
    loaded = json.loads((SCHEMAS / "vectors" / name).read_text(encoding="utf-8"))["vectors"]
    assert loaded
    return [pytest.param(vector, id=vector.get("name", vector.get("key_hex"))) for vector in loaded]


@pytest.mark.parametrize("vector", vectors("ids.json"))
def test_ids(vector):
    content = bytes.fromhex(vector["content_hex"])
    assert coderelay.packet_id(vector["repo_id"], content, vector["metadata"]).hex() == vector["packet_id"]


def test_ids_are_all_different():
    ids = [param.values[0]["packet_id"] for param in vectors("ids.json")]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("vector", vectors("ledger.json"))
def test_ledger(vector):
    record = bytes.fromhex(vector["record_hex"])
    assert record[0] == 1 and (len(record) - 1) % 24 == 0
    slots = [record[at : at + 24] for at in range(1, len(record), 24)]
    assert len(slots) == len(vector["entries"])
    for slot, entry in zip(slots, vector["entries"], strict=True):
        repo_id = entry["repo_id"].encode()
        key = blake3(len(repo_id).to_bytes(8, "little") + repo_id + bytes.fromhex(entry["packet_id"])).digest(length=16)
        fingerprint = blake3(bytes.fromhex(entry["content_hex"])).digest(length=8)
        assert slot == key + fingerprint
        assert (key.hex(), fingerprint.hex()) == (entry["key"], entry["fingerprint"])


def murmur2(key: bytes) -> int:
    """Kafka's murmur2, written from its description: seed 0x9747b28c, answers a signed integer."""
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    value = 0x9747B28C ^ len(key)
    whole = len(key) - len(key) % 4
    for at in range(0, whole, 4):
        word = int.from_bytes(key[at : at + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        value = value * multiplier & mask ^ word
    if rest := key[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * multiplier & mask
    value = (value ^ value >> 13) * multiplier & mask
    value ^= value >> 15
    return value - (1 << 32) if value >> 31 else value


@pytest.mark.parametrize("vector", vectors("partitions.json"))
def test_partitions(vector):
    value = murmur2(bytes.fromhex(vector["key_hex"]))
    assert value == vector["murmur2"]
    for count, partition in vector["partitions"].items():
        assert (value & 0x7FFFFFFF) % int(count) == partition


@pytest.mark.parametrize("vector", vectors("packets.json"))
def test_packets(vector):
    packet = coderelay.CodePacket.FromString(bytes.fromhex(vector["encoded_hex"]))
    assert packet.repo_id == vector["repo_id"]
    assert packet.content.hex() == vector["content_hex"]
    assert dict(packet.metadata) == vector["metadata"]
    assert packet.packet_id.hex() == vector["packet_id_hex"]
    if vector["created_at"] is None:
        assert not packet.HasField("created_at")
    else:
        assert {"seconds": packet.created_at.seconds, "nanos": packet.created_at.nanos} == vector["created_at"]
    assert coderelay.packet_id(packet.repo_id, packet.content, packet.metadata).hex() == vector["derived_id"]


def original_packet():
    """The message of a reader that knows the original three fields only, by any other name."""
    file = descriptor_pb2.FileDescriptorProto(name="original.proto", package="original", syntax="proto3")
    packet = file.message_type.add(name="Packet")
    field = descriptor_pb2.FieldDescriptorProto
    packet.field.add(name="repo_id", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    packet.field.add(name="content", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    entry = packet.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    packet.field.add(
        name="metadata",
        number=3,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".original.Packet.MetadataEntry",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("original.Packet"))


@pytest.mark.parametrize("vector", vectors("packets.json"))
def test_a_decoder_of_the_original_three_fields_reads_every_packet(vector):
    packet = original_packet().FromString(bytes.fromhex(vector["encoded_hex"]))
    assert packet.repo_id == vector["repo_id"]
    assert packet.content.hex() == vector["content_hex"]
    assert dict(packet.metadata) == vector["metadata"]


MAX_COMPRESSED, MAX_EXPANDED, MAX_RATIO, RATIO_FLOOR = 4 << 20, 64 << 20, 200, 64 << 10


def verdict(content: bytes):
    """Judges a content with zlib, member by member, never holding more than a piece of what it expands to."""
    if len(content) > MAX_COMPRESSED:
        return "CONTENT_TOO_LARGE", None
    if content[:2] != b"\x1f\x8b":
        return "CONTENT_NOT_GZIP", None
    expanded, rest = 0, content
    while rest:
        decoder = zlib.decompressobj(31)
        while not decoder.eof:
            try:
                expanded += len(decoder.decompress(rest, 1 << 16))
            except zlib.error:
                return "CONTENT_CORRUPT", None
            read = len(content) - len(decoder.unconsumed_tail) - len(decoder.unused_data)
            if expanded > max(RATIO_FLOOR, MAX_RATIO * len(content)) or expanded > MAX_EXPANDED:
                return "CONTENT_BOMB" if expanded > MAX_RATIO * read else "CONTENT_TOO_LARGE", None
            rest = decoder.unconsumed_tail
            if not rest and not decoder.eof:
                # What the decoder still holds back comes out without further input.
                expanded += len(decoder.flush())
                if not decoder.eof:
                    return "CONTENT_CORRUPT", None
        rest = decoder.unused_data
    return "OK", expanded


@pytest.mark.parametrize("vector", vectors("gzip.json"))
def test_gzip(vector):
    content = base64.b64decode(vector["base64"]) * vector["repeat"]
    assert verdict(content) == (vector["verdict"], vector.get("expanded"))
