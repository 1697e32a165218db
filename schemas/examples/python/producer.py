#!/usr/bin/env python3
"""Publishes files as packets of code over one gRPC stream.

    pip install -r requirements.txt
    python producer.py --repo github.com/example/repo src/ README.md
    python producer.py --endpoint us:50051 --endpoint eu:50051 --repo github.com/example/repo src/

Every file becomes a packet with the metadata ``path``. Each packet gets exactly one answer:

* committed: Kafka has it on all in-sync replicas. Sending it again does no harm, it is stored once.
* an error that says the packet itself is wrong: reported, never retried.
* an error that says "later" (RESOURCE_EXHAUSTED, UNAVAILABLE), or no answer because the stream broke: sent again after the
  delay the server asked for, **with the same packet id**. Should the first attempt have arrived after all, the pipeline
  drops the second as a duplicate.

With ``x-ack: mirrored`` in the call's metadata (``--ack mirrored``) *committed* means in both regions; what this region has and the
other did not confirm in time is an error that says "later".

Of several endpoints the first is used until its stream breaks or it answers UNAVAILABLE. What it has not settled then goes to
the next, with the same packet ids, and after the last the first is tried again.

Exits with 0 if every packet was committed, otherwise with 1.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import coderelay
import grpc

# A host that is gone without a word answers no pings: its stream ends with UNAVAILABLE after 15 seconds at most.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
LATER = {
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
    grpc.StatusCode.ABORTED.value[0],
    grpc.StatusCode.INTERNAL.value[0],
}


@dataclasses.dataclass
class Outcome:
    """What became of one packet: committed somewhere, or not and why."""

    partition: int | None = None
    offset: int | None = None
    reason: str = "NO_ANSWER"
    message: str = "the stream ended before the packet was answered"
    later: bool = True
    elsewhere: bool = True
    """Whether another endpoint may do better now; always where there was no answer."""
    delay: float | None = None
    endpoint: str = ""

    @property
    def committed(self) -> bool:
        return self.partition is not None

    @classmethod
    def of(cls, result) -> "Outcome":
        if result.WhichOneof("outcome") == "committed":
            return cls(result.committed.partition, result.committed.offset, "", "", later=False, elsewhere=False)
        info = coderelay.detail(result.error, coderelay.ErrorInfo)
        retry = coderelay.detail(result.error, coderelay.RetryInfo)
        return cls(
            reason=info.reason if info else str(result.error.code),
            message=result.error.message,
            later=result.error.code in LATER,
            elsewhere=result.error.code == UNAVAILABLE,
            delay=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        )


def packet(repo_id: str, path: str, plain: bytes):
    """One file as a packet. Its id depends on what is in it alone, so that every attempt has the same."""
    content = coderelay.compress(plain)
    metadata = {"path": path}
    made = coderelay.CodePacket(
        repo_id=repo_id,
        content=content,
        metadata=metadata,
        packet_id=coderelay.packet_id(repo_id, content, metadata),
    )
    made.created_at.GetCurrentTime()
    return made


def requests(packets: Iterable, most: int = 100, most_bytes: int = 1 << 20) -> Iterator:
    """Groups packets to requests. Packet k of a request has the number ``seq + k``."""
    seq = 0
    request = coderelay.PublishRequest(seq=seq)
    size = 0
    for one in packets:
        if request.packets and (len(request.packets) >= most or size + one.ByteSize() > most_bytes):
            yield request
            request, size = coderelay.PublishRequest(seq=seq), 0
        request.packets.append(one)
        size += one.ByteSize()
        seq += 1
    if request.packets:
        yield request


def attempt(channel: grpc.Channel, packets: Sequence, ack: str | None = None) -> list[Outcome]:
    """Sends the packets over one stream and answers what became of each."""
    publish = channel.stream_stream(
        coderelay.PUBLISH,
        request_serializer=coderelay.PublishRequest.SerializeToString,
        response_deserializer=coderelay.PublishResponse.FromString,
    )
    outcomes = [Outcome() for _ in packets]
    try:
        # gRPC takes requests from the iterator as fast as the server reads them, while answers are read here.
        for response in publish(requests(packets), metadata=[("x-ack", ack)] if ack else None):
            for result in response.results:
                outcomes[result.seq] = Outcome.of(result)
    except grpc.RpcError as error:
        for outcome in outcomes:
            if outcome.reason == "NO_ANSWER":
                outcome.message = f"the stream ended with {error.code().name}: {error.details()}"
                outcome.later = error.code().value[0] in LATER
    return outcomes


def publish(
    channels: Mapping[str, grpc.Channel], packets: Sequence, attempts: int = 6, ack: str | None = None
) -> list[Outcome]:
    """Sends the packets, and those that may succeed later again, until each is settled or the attempts are used up.

    ``channels`` are endpoints by their address, in the order of preference; ``attempts`` are as many for each of them.
    """
    outcomes = [Outcome() for _ in packets]
    pending = list(range(len(packets)))
    endpoints = itertools.cycle(channels)
    endpoint = next(endpoints)
    errors = {}
    rounds = attempts * len(channels)
    for round_ in range(rounds):
        outcomes_now = attempt(channels[endpoint], [packets[index] for index in pending], ack)
        for index, outcome in zip(pending, outcomes_now, strict=True):
            outcomes[index] = dataclasses.replace(outcome, endpoint=endpoint)
        pending = [index for index in pending if outcomes[index].later]
        if not pending:
            return outcomes
        first = next((index for index in pending if outcomes[index].elsewhere), pending[0])
        reason = errors[endpoint] = outcomes[first].message
        if round_ + 1 == rounds:
            break
        asked = max((outcomes[index].delay or 0 for index in pending), default=0)
        if len(channels) > 1 and outcomes[first].elsewhere:
            failed, endpoint = endpoint, next(endpoints)
            print(f"{failed}: {reason}; going on at {endpoint}", file=sys.stderr)
            if (round_ + 1) % len(channels):
                # One that may be well is asked at once; a pause comes when all have had their turn.
                continue
        # Without a wish of the server: 0.25, 0.5, 1 … seconds, spread so that producers do not come back all at once.
        delay = asked or 0.25 * 2 ** (round_ // len(channels)) * random.uniform(0.5, 1)
        print(f"{len(pending)} packets again in {delay:.1f} s: {reason}", file=sys.stderr)
        time.sleep(delay)
    print("gave up: " + "; ".join(f"{endpoint}: {error}" for endpoint, error in errors.items()), file=sys.stderr)
    return outcomes


def files(paths: Iterable[str]) -> Iterator[pathlib.Path]:
    """The files named, and those below the folders named."""
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        else:
            yield path


def main() -> int:
    parser = argparse.ArgumentParser(description="Publishes files as packets of code.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, or folders to take every file from")
    parser.add_argument("--repo", required=True, help="the repository the files belong to")
    parser.add_argument("--endpoint", action="append", help="repeatable; env INGEST_ENDPOINT, comma-separated")
    parser.add_argument("--ack", choices=["local", "mirrored"], help="what committed means; the deployment's default")
    arguments = parser.parse_args()
    endpoints = arguments.endpoint or os.environ.get("INGEST_ENDPOINT", "127.0.0.1:50051").split(",")

    sources = list(files(arguments.paths))
    packets = [packet(arguments.repo, str(source), source.read_bytes()) for source in sources]
    with contextlib.ExitStack() as open_channels:
        channels = {
            endpoint: open_channels.enter_context(
                grpc.insecure_channel(endpoint.strip().removeprefix("http://"), KEEPALIVE)
            )
            for endpoint in endpoints
        }
        outcomes = publish(channels, packets, ack=arguments.ack)

    for source, outcome in zip(sources, outcomes, strict=True):
        if not outcome.committed:
            print(f"{source}: {outcome.reason}: {outcome.message}", file=sys.stderr)
    committed = sum(outcome.committed for outcome in outcomes)
    print(f"{committed} of {len(packets)} packets committed")
    if len(channels) > 1:
        counts = collections.Counter(outcome.endpoint for outcome in outcomes if outcome.committed)
        for endpoint in channels:
            print(f"{counts[endpoint]} by {endpoint}")
    return 0 if committed == len(packets) else 1


if __name__ == "__main__":
    sys.exit(main())
