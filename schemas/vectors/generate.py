"""Writes the test vectors that come from Python: ids.json, ledger.json, packets.json and gzip.json.

    python schemas/vectors/generate.py

Nothing here calls the Rust code: hashes are those of the ``blake3`` package, messages are encoded by ``protobuf``, gzip is
framed by hand around ``zlib``. The Rust tests confirm what Python wrote. partitions.json comes from Java: Partitions.java.
"""

import base64
import json
import pathlib
import random
import struct
import sys
import zlib

from blake3 import blake3

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples" / "python"))
from coderelay import CodePacket, packet_id  # noqa: E402


def write(name: str, about: str, vectors: list) -> None:
    lines = ",\n".join("    " + json.dumps(vector, ensure_ascii=False) for vector in vectors)
    text = f'{{\n  "about": {json.dumps(about)},\n  "vectors": [\n{lines}\n  ]\n}}\n'
    (HERE / name).write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------- ids

IDS = [
    ("empty everything", "", b"", {}),
    ("no metadata", "github.com/example/repo", b"\x1f\x8b", {}),
    ("one entry", "github.com/example/repo", b"\x1f\x8b", {"path": "src/main.rs"}),
    ("entries are sorted by key", "r", b"c", {"b": "1", "a": "2", "aa": "3", "B": "4", "": "5"}),
    ("sorted by UTF-8 bytes, not UTF-16", "r", b"c", {"\uff5e": "full-width tilde", "\U0001f980": "crab", "é": "", "z": ""}),
    ("bytes stay in their field, 1", "ab", b"c", {}),
    ("bytes stay in their field, 2", "a", b"bc", {}),
    ("bytes stay in their entry, 1", "r", b"c", {"ab": "c"}),
    ("bytes stay in their entry, 2", "r", b"c", {"a": "bc"}),
    ("an entry is not two", "r", b"c", {"a": "b", "c": "d"}),
    ("non-ASCII", "gitlab.com/größe/straße", "日本".encode(), {"コード": "🦀"}),
    ("longer than one BLAKE3 chunk", "r", bytes(i % 251 for i in range(5000)), {"k": "v" * 300}),
]


def ids() -> list:
    return [
        {
            "name": name,
            "repo_id": repo_id,
            "content_hex": content.hex(),
            "metadata": metadata,
            "packet_id": packet_id(repo_id, content, metadata).hex(),
        }
        for name, repo_id, content, metadata in IDS
    ]


# ------------------------------------------------------------------------------------------------------------- ledger


def ledger() -> list:
    groups = {
        "no entry": [],
        "one entry": [IDS[1]],
        "several entries": IDS[2:8],
    }
    vectors = []
    for name, packets in groups.items():
        record = b"\x01"
        entries = []
        for _, repo_id, content, metadata in packets:
            key_id = packet_id(repo_id, content, metadata)
            key = blake3(len(repo_id.encode()).to_bytes(8, "little") + repo_id.encode() + key_id).digest(length=16)
            fingerprint = blake3(content).digest(length=8)
            record += key + fingerprint
            entries.append(
                {
                    "repo_id": repo_id,
                    "packet_id": key_id.hex(),
                    "content_hex": content.hex(),
                    "key": key.hex(),
                    "fingerprint": fingerprint.hex(),
                }
            )
        vectors.append({"name": name, "record_hex": record.hex(), "entries": entries})
    return vectors


# ------------------------------------------------------------------------------------------------------------ packets


def packets() -> list:
    full = CodePacket(repo_id="github.com/example/repo", content=b"\x1f\x8b\x08", packet_id=bytes(range(16)))
    full.created_at.seconds, full.created_at.nanos = 1_800_000_000, 123_456_789
    full.metadata["path"] = "src/main.rs"
    original = CodePacket(repo_id="github.com/example/repo", content=b"\x1f\x8b\x08")
    original.metadata["path"] = "src/main.rs"
    # Two orders of one map, put together by hand: a protobuf runtime may write either.
    entry = [b"\x1a\x06\x0a\x01a\x12\x01" + b"1", b"\x1a\x06\x0a\x01b\x12\x01" + b"2"]
    repo = b"\x0a\x01r\x12\x01c"

    def vector(name, encoded):
        packet = CodePacket.FromString(encoded)
        vector = {
            "name": name,
            "encoded_hex": encoded.hex(),
            "repo_id": packet.repo_id,
            "content_hex": packet.content.hex(),
            "metadata": dict(packet.metadata),
            "packet_id_hex": packet.packet_id.hex(),
            "created_at": None,
            "derived_id": packet_id(packet.repo_id, packet.content, packet.metadata).hex(),
        }
        if packet.HasField("created_at"):
            vector["created_at"] = {"seconds": packet.created_at.seconds, "nanos": packet.created_at.nanos}
        return vector

    return [
        vector("every field", full.SerializeToString()),
        vector("the original three fields", original.SerializeToString()),
        vector("empty", b""),
        vector("metadata in one order", repo + entry[0] + entry[1]),
        vector("metadata in the other order, the same id", repo + entry[1] + entry[0]),
        vector("a metadata key twice: the last one counts", repo + entry[0] + b"\x1a\x06\x0a\x01a\x12\x013"),
        vector("a metadata entry without a value", repo + b"\x1a\x03\x0a\x01a"),
        vector("fields in another order", b"\x12\x01c\x0a\x01r"),
        vector("a field twice: the last one counts", b"\x0a\x01x" + repo),
        vector("an unknown field is skipped", repo + b"\x9a\x06\x03new"),
    ]


# --------------------------------------------------------------------------------------------------------------- gzip

FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT = 1, 2, 4, 8, 16


def member(plain: bytes, *, level=9, flags=0, fields=b"", method=8, crc=None, length=None) -> bytes:
    """One gzip member, framed by hand so that every part of it can be wrong."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(plain) + deflate.flush()
    crc = zlib.crc32(plain) if crc is None else crc
    length = len(plain) if length is None else length
    header = b"\x1f\x8b" + bytes([method, flags]) + bytes(4) + b"\x00\xff" + fields
    if flags & FHCRC:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    return header + body + struct.pack("<II", crc & 0xFFFFFFFF, length & 0xFFFFFFFF)


def gzips() -> list:
    code = b'fn main() {\n    println!("hello");\n}\n' * 8
    good = member(code)
    noise = random.Random(1).randbytes(4096)
    # 1 MiB in 6 KB: below the ratio, so that many of them are too large but no bomb.
    megabyte = b"".join(random.Random(i).randbytes(16) + bytes(4080) for i in range(256))
    bit_flipped = bytearray(good)
    bit_flipped[20] ^= 0x40
    wrong_header_crc = bytearray(member(code, flags=FHCRC))
    wrong_header_crc[10] ^= 1

    every_field = member(
        code,
        flags=FTEXT | FHCRC | FEXTRA | FNAME | FCOMMENT,
        fields=b"\x04\x00ab\x00\x00main.rs\0a comment\0",
    )

    accepted = [
        ("one member", good),
        ("nothing in it", member(b"")),
        ("stored, not compressed", member(noise[:100], level=0)),
        ("two members", good + member(b"// and more\n")),
        ("an empty member between others", good + member(b"") + good),
        ("a file name", member(code, flags=FNAME, fields=b"main.rs\0")),
        ("every optional field", every_field),
        ("gzip in gzip: only the outer one is looked at", member(good)),
        ("over 200:1, but no more than 64 KiB", member(bytes(65536))),
    ]
    corrupt = [
        ("cut in the header", good[:7]),
        ("cut after the header", good[:10]),
        ("cut in the data", good[:-12]),
        ("cut in the checksum", good[:-6]),
        ("one byte missing", good[:-1]),
        ("an unfinished file name", member(code, flags=FNAME, fields=b"main.rs")[:17]),
        ("an extra field longer than the content", member(b"", flags=FEXTRA, fields=b"\xff\xff")),
        ("wrong checksum", member(code, crc=zlib.crc32(code) ^ 1)),
        ("wrong length", member(code, length=len(code) + 1)),
        ("a bit flipped in the data", bytes(bit_flipped)),
        ("wrong checksum of the header", bytes(wrong_header_crc)),
        ("a reserved flag", member(code, flags=0x20)),
        ("another method than deflate", member(code, method=7)),
        ("a reserved block type", good[:10] + b"\x07" + good[11:]),
        ("a byte after the end", good + b"\n"),
        ("zeros after the end", good + bytes(512)),
        ("text after the end", good + b"and so on"),
        ("the second member cut", good + good[:-4]),
        ("the second member damaged", good + member(code, crc=1)),
    ]
    not_gzip = [
        ("empty", b""),
        ("one byte", b"\x1f"),
        ("plain text", code),
        ("zip", b"PK\x03\x04" + bytes(26)),
        ("zlib", zlib.compress(code)),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(9)),
        ("raw deflate", good[10:-8]),
    ]
    bombs = [
        ("1000:1, 8 MiB of zeros", member(bytes(8 << 20))),
        ("64 KiB and one byte, over 200:1", member(bytes(65537))),
        ("in the last of three members", good + good + member(bytes(1 << 20))),
    ]
    vectors = [vector(name, data, "OK") for name, data in accepted]
    vectors += [vector(name, data, "CONTENT_CORRUPT") for name, data in corrupt]
    vectors += [vector(name, data, "CONTENT_NOT_GZIP") for name, data in not_gzip]
    vectors += [vector(name, data, "CONTENT_BOMB") for name, data in bombs]
    stored = member(noise, level=0)
    vectors += [
        vector("64 members of 1 MiB: the largest that is allowed", member(megabyte), "OK", times=64),
        vector("65 members of 1 MiB", member(megabyte), "CONTENT_TOO_LARGE", times=65),
        vector("a thousand empty members", member(b""), "OK", times=1000),
        vector("4 MiB compressed at most", stored, "OK", times=(4 << 20) // len(stored)),
        vector("over 4 MiB compressed", stored, "CONTENT_TOO_LARGE", times=(4 << 20) // len(stored) + 1),
    ]
    return vectors


def vector(name: str, data: bytes, verdict: str, times: int = 1) -> dict:
    vector = {"name": name, "verdict": verdict, "repeat": times, "base64": base64.b64encode(data).decode()}
    if verdict == "OK":
        inflated, rest = 0, data
        while rest:
            decoder = zlib.decompressobj(31)
            inflated += len(decoder.decompress(rest))
            rest = decoder.unused_data
        vector["expanded"] = inflated * times
    return vector


if __name__ == "__main__":
    write(
        "ids.json",
        "Derived packet ids. Written by generate.py with the blake3 package of PyPI.",
        ids(),
    )
    write(
        "ledger.json",
        "Ledger records: a version byte, then key (16 bytes) and fingerprint (8 bytes) of every entry, big-endian; here as hex."
        " key = BLAKE3(le64(len(repo_id)) repo_id packet_id), fingerprint = BLAKE3(content), both cut. Written by generate.py.",
        ledger(),
    )
    write(
        "packets.json",
        "Encoded coderelay.v1.CodePacket messages and what they mean. Encoded and read by Python's protobuf;"
        " written by generate.py.",
        packets(),
    )
    write(
        "gzip.json",
        "Contents and the verdict on them under the default limits (4 MiB compressed, 64 MiB expanded, 200:1 above 64 KiB)."
        " The content is `base64` decoded and repeated `repeat` times. Written by generate.py, framed by hand around zlib.",
        gzips(),
    )
