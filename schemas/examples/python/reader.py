#!/usr/bin/env python3
"""Reads the duplicate-free topic and unpacks the code.

    pip install -r requirements.txt
    python reader.py --repo github.com/example/repo | jq .

Writes one line of JSON per packet. Reads to the present end of the topic and stops; ``--follow`` waits for more. With
``--group NAME`` the position is kept in Kafka, so the next run goes on where this one stopped.

The topic is written in transactions: ``isolation.level=read_committed`` hides what a crashed processor left behind. It is the
default of librdkafka, but **not** of Java's consumer, hence it is spelled out.
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator

import coderelay
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition


def messages(consumer: Consumer, follow: bool) -> Iterator[Message]:
    """The topic's messages, to the end of every assigned partition or, following, for ever."""
    at_end = set()
    while True:
        message = consumer.poll(1.0)
        assigned = {(partition.topic, partition.partition) for partition in consumer.assignment()}
        if message is None:
            pass
        elif message.error() is None:
            at_end.discard((message.topic(), message.partition()))
            yield message
        elif message.error().code() == KafkaError._PARTITION_EOF:
            at_end.add((message.topic(), message.partition()))
        else:
            raise KafkaException(message.error())
        if not follow and assigned and assigned <= at_end:
            return


def describe(message: Message) -> dict:
    """What a packet is, with its content unpacked."""
    packet = coderelay.CodePacket.FromString(message.value())
    code = gzip.decompress(packet.content)
    return {
        "packet_id": packet.packet_id.hex(),
        "repo_id": packet.repo_id,
        "metadata": dict(packet.metadata),
        "created_at": packet.created_at.ToJsonString(),
        "bytes": len(code),
        "sha256": hashlib.sha256(code).hexdigest(),
        "partition": message.partition(),
        "offset": message.offset(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads the duplicate-free topic and unpacks the code.")
    parser.add_argument("--bootstrap", default=os.environ.get("KAFKA_BOOTSTRAP", "localhost:9092"), help="env KAFKA_BOOTSTRAP")
    parser.add_argument("--topic", default=coderelay.DEDUPED)
    parser.add_argument("--repo", help="packets of this repository only")
    parser.add_argument("--group", help="consumer group that keeps the position; without it every run starts at the beginning")
    parser.add_argument("--follow", action="store_true", help="wait for more at the end")
    arguments = parser.parse_args()

    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": arguments.group or f"coderelay-reader-{uuid.uuid4()}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            # Positions are committed in the background, but only those stored below.
            "enable.auto.commit": arguments.group is not None,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
        }
    )
    if arguments.group:
        consumer.subscribe([arguments.topic])
    else:
        partitions = consumer.list_topics(arguments.topic, timeout=10).topics[arguments.topic].partitions
        consumer.assign([TopicPartition(arguments.topic, number, OFFSET_BEGINNING) for number in partitions])

    try:
        for message in messages(consumer, arguments.follow):
            # The key is the repository: other people's packets need not even be decoded.
            if arguments.repo is None or message.key() == arguments.repo.encode():
                print(json.dumps(describe(message), ensure_ascii=False), flush=arguments.follow)
            if arguments.group:
                # After the work, so that a crash repeats a packet rather than losing it.
                consumer.store_offsets(message)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
