"""What a Python program needs to speak with coderelay: the messages, the packet id, and nothing else.

The message classes are built from the checked-in descriptor set (``schemas/dist/coderelay.v1.fds.binpb``), so neither
``protoc`` nor generated code is needed. They live in a descriptor pool of their own and get in nobody's way.
"""

import gzip
import os
import pathlib
from collections.abc import Mapping

from blake3 import blake3
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTOR_SET = pathlib.Path(
    os.environ.get("CODERELAY_DESCRIPTOR_SET")
    or pathlib.Path(__file__).resolve().parents[2] / "dist" / "coderelay.v1.fds.binpb"
)

_pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes()).file:
    _pool.Add(_file)


def message(name: str):
    """The class of a message by its full name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


CodePacket = message("coderelay.v1.CodePacket")
PublishRequest = message("coderelay.v1.PublishRequest")
PublishResponse = message("coderelay.v1.PublishResponse")
PublishBatchRequest = message("coderelay.v1.PublishBatchRequest")
PublishBatchResponse = message("coderelay.v1.PublishBatchResponse")
BadRequest = message("google.rpc.BadRequest")
ErrorInfo = message("google.rpc.ErrorInfo")
RetryInfo = message("google.rpc.RetryInfo")

PUBLISH = "/coderelay.v1.Ingest/Publish"
PUBLISH_BATCH = "/coderelay.v1.Ingest/PublishBatch"

PACKETS = "code.packets.v1"
DEDUPED = "code.packets.deduped.v1"


def packet_id(repo_id: str, content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The id ingest derives for a packet that comes without one: 16 bytes.

    A producer that derives it itself has the same id on every retry, even after a restart, as long as it compresses the
    same way.
    """

    def prefixed(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data

    entries = sorted((key.encode(), value.encode()) for key, value in metadata.items())
    hasher = blake3()
    hasher.update(prefixed(repo_id.encode()))
    hasher.update(prefixed(content))
    hasher.update(len(entries).to_bytes(8, "little"))
    for key, value in entries:
        hasher.update(prefixed(key))
        hasher.update(prefixed(value))
    return hasher.digest(length=16)


def compress(plain: bytes) -> bytes:
    """gzip without a time stamp: the same code always becomes the same packet."""
    return gzip.compress(plain, mtime=0)


def detail(status, wanted):
    """The detail of type ``wanted`` in a ``google.rpc.Status``, or None."""
    for any_message in status.details:
        found = wanted()
        if any_message.Unpack(found):
            return found
    return None
