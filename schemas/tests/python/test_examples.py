"""The examples against a running coderelay: what ``producer.py`` sends, ``reader.py`` gets, once.

INGEST_ENDPOINT=127.0.0.1:50051 KAFKA_BOOTSTRAP=127.0.0.1:9092 pytest schemas/tests/python
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
import uuid

import grpc
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
sys.path.insert(0, str(EXAMPLES))
import coderelay  # noqa: E402
import producer  # noqa: E402

MISSING = [name for name in ("INGEST_ENDPOINT", "KAFKA_BOOTSTRAP") if not os.environ.get(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs a running coderelay: {', '.join(MISSING)} not set")

PATIENCE_S = 60


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def read(repo: str) -> list[dict]:
    reader = run("reader.py", "--repo", repo)
    assert reader.returncode == 0, reader.stderr
    return [json.loads(line) for line in reader.stdout.splitlines()]


def read_at_least(repo: str, count: int) -> list[dict]:
    """Reads until so many packets came through, and once more some seconds later: a duplicate would have followed."""
    deadline = time.monotonic() + PATIENCE_S
    while len(packets := read(repo)) < count:
        assert time.monotonic() < deadline, f"{len(packets)} of {count} packets after {PATIENCE_S} s"
        time.sleep(0.5)
    time.sleep(3)
    return read(repo)


@pytest.fixture
def repo() -> str:
    return f"example.com/python/{uuid.uuid4()}"


def test_files_sent_twice_are_read_once(tmp_path, repo):
    files = {f"file-{i}.py": "".join(f"print({i} * {n})\n" for n in range(i * 20 + 1)) for i in range(250)}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):
        sent = run("producer.py", "--repo", repo, str(tmp_path))
        assert sent.returncode == 0, sent.stderr
        assert sent.stdout == "250 of 250 packets committed\n"

    packets = read_at_least(repo, len(files))

    hashes = {pathlib.Path(packet["metadata"]["path"]).name: packet["sha256"] for packet in packets}
    assert hashes == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    assert len(packets) == len(files), "a packet was published twice"
    assert len({packet["partition"] for packet in packets}) == 1, "a repository stays in one partition"


def test_a_bad_packet_harms_neither_its_neighbours_nor_the_stream(repo):
    packets = [producer.packet(repo, f"{i}.txt", b"text %d" % i) for i in range(3)]
    packets[1].content = b"not gzip"
    packets[1].packet_id = b""
    with grpc.insecure_channel(os.environ["INGEST_ENDPOINT"].removeprefix("http://")) as channel:
        outcomes = producer.publish({"ingest": channel}, packets)
    assert [outcome.committed for outcome in outcomes] == [True, False, True]
    assert outcomes[1].reason == "CONTENT_NOT_GZIP"
    assert not outcomes[1].later, "a bad packet is not worth a retry"
    assert len(read_at_least(repo, 2)) == 2


def test_ingest_derives_the_id_that_python_derives(repo):
    packet = producer.packet(repo, "a.txt", b"text")
    derived = packet.packet_id
    packet.packet_id = b""
    with grpc.insecure_channel(os.environ["INGEST_ENDPOINT"].removeprefix("http://")) as channel:
        publish = channel.unary_unary(
            coderelay.PUBLISH_BATCH,
            request_serializer=coderelay.PublishBatchRequest.SerializeToString,
            response_deserializer=coderelay.PublishBatchResponse.FromString,
        )
        response = publish(coderelay.PublishBatchRequest(packets=[packet]), timeout=30, wait_for_ready=True)
    [result] = response.results
    assert (result.seq, result.packet_id) == (0, derived)
    assert result.committed.topic
