"""The example producer against a server that misbehaves on purpose: it needs no running coderelay."""

import concurrent.futures
import pathlib
import sys

import grpc
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
sys.path.insert(0, str(EXAMPLES))
import coderelay  # noqa: E402
import producer  # noqa: E402

UNAVAILABLE, RESOURCE_EXHAUSTED, INVALID_ARGUMENT = 14, 8, 3


class Server:
    """Answers each packet as ``script`` says for its attempt, and remembers the ids it saw."""

    def __init__(self, script):
        self.script = script
        self.streams = []

    def publish(self, requests, context):
        number = len(self.streams)
        self.streams.append(seen := [])
        for request in requests:
            response = coderelay.PublishResponse()
            for k, packet in enumerate(request.packets):
                seen.append(packet.packet_id)
                answer = self.script(number, request.seq + k, context)
                if answer is not None:
                    response.results.append(answer)
            yield response

    def __enter__(self):
        handler = grpc.stream_stream_rpc_method_handler(
            self.publish, coderelay.PublishRequest.FromString, coderelay.PublishResponse.SerializeToString
        )
        self.grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        self.grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("coderelay.v1.Ingest", {"Publish": handler})])
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc.add_insecure_port('127.0.0.1:0')}")
        self.grpc.start()
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.grpc.stop(None)


def committed(seq):
    result = coderelay.PublishResponse().results.add(seq=seq)
    result.committed.topic, result.committed.partition, result.committed.offset = coderelay.PACKETS, 3, seq
    return result


def failed(seq, code, detail):
    result = coderelay.PublishResponse().results.add(seq=seq)
    result.error.code, result.error.message = code, "as the test wants it"
    result.error.details.add().Pack(detail)
    return result


def busy(seq, code=UNAVAILABLE):
    detail = coderelay.RetryInfo()
    detail.retry_delay.FromMilliseconds(20)
    return failed(seq, code, detail)


@pytest.fixture(autouse=True)
def delays(monkeypatch):
    slept = []
    monkeypatch.setattr(producer.time, "sleep", slept.append)
    return slept


PACKETS = [producer.packet("example.com/repo", f"{i}.txt", b"text %d" % i) for i in range(250)]
IDS = [packet.packet_id for packet in PACKETS]


def test_packets_are_numbered_on_across_requests():
    grouped = list(producer.requests(PACKETS, most=100))
    assert [(request.seq, len(request.packets)) for request in grouped] == [(0, 100), (100, 100), (200, 50)]
    assert [len(request.packets) for request in producer.requests(PACKETS[:3], most_bytes=1)] == [1, 1, 1]


def test_what_was_refused_for_now_is_sent_again_with_the_same_id_after_the_delay_asked_for(delays):
    def script(stream, seq, _):
        return busy(seq) if stream == 0 and seq % 2 else committed(seq)

    with Server(script) as server:
        outcomes = producer.publish({"a": server.channel}, PACKETS)
    assert all(outcome.committed for outcome in outcomes)
    assert server.streams == [IDS, IDS[1::2]]
    assert delays == [0.02]


def test_what_is_wrong_is_reported_and_not_sent_again():
    reason = coderelay.ErrorInfo(reason="CONTENT_CORRUPT", domain="coderelay")
    with Server(lambda _, seq, __: failed(seq, INVALID_ARGUMENT, reason) if seq == 7 else committed(seq)) as server:
        outcomes = producer.publish({"a": server.channel}, PACKETS)
    assert [i for i, outcome in enumerate(outcomes) if not outcome.committed] == [7]
    assert (outcomes[7].reason, outcomes[7].later) == ("CONTENT_CORRUPT", False)
    assert len(server.streams) == 1


def test_what_a_broken_stream_left_unanswered_is_sent_again():
    def script(stream, seq, context):
        if stream == 0 and seq == 120:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        return committed(seq)

    with Server(script) as server:
        outcomes = producer.publish({"a": server.channel}, PACKETS)
    assert all(outcome.committed for outcome in outcomes)
    # The first request was answered; the one in which the stream broke was not.
    assert server.streams[1] == IDS[100:]


def test_a_stream_that_ends_without_all_answers_counts_as_broken():
    with Server(lambda stream, seq, _: None if stream == 0 and seq == 5 else committed(seq)) as server:
        outcomes = producer.publish({"a": server.channel}, PACKETS)
    assert all(outcome.committed for outcome in outcomes)
    assert server.streams[1] == [IDS[5]]


def test_the_next_endpoint_gets_what_a_broken_stream_left_unanswered(delays, capsys):
    def script(_, seq, context):
        if seq == 120:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        return committed(seq)

    with Server(script) as first, Server(lambda _, seq, __: committed(seq)) as second:
        outcomes = producer.publish({"a": first.channel, "b": second.channel}, PACKETS)
    assert [outcome.endpoint for outcome in outcomes] == ["a"] * 100 + ["b"] * 150
    assert all(outcome.committed for outcome in outcomes)
    assert (len(first.streams), second.streams) == (1, [IDS[100:]]), "what was not acknowledged, with the same ids"
    assert capsys.readouterr().err.count("going on at b") == 1
    assert delays == []


def test_the_next_endpoint_gets_what_is_unavailable_and_after_the_last_the_first_again(delays):
    def unavailable_at_first(stream, seq, _):
        return busy(seq) if stream == 0 else committed(seq)

    with Server(unavailable_at_first) as first, Server(unavailable_at_first) as second:
        outcomes = producer.publish({"a": first.channel, "b": second.channel}, PACKETS)
    assert all(outcome.committed and outcome.endpoint == "a" for outcome in outcomes)
    assert (first.streams, second.streams) == ([IDS, IDS], [IDS])
    assert delays == [0.02], "a pause comes once all have had their turn"


def test_back_pressure_is_no_reason_to_go_elsewhere():
    def script(stream, seq, _):
        return busy(seq, RESOURCE_EXHAUSTED) if stream == 0 else committed(seq)

    with Server(script) as first, Server(script) as second:
        outcomes = producer.publish({"a": first.channel, "b": second.channel}, PACKETS)
    assert all(outcome.committed for outcome in outcomes)
    assert (first.streams, second.streams) == ([IDS, IDS], [])


def test_where_all_are_dead_each_is_named_with_its_error(capsys):
    with grpc.insecure_channel("127.0.0.1:1") as first, grpc.insecure_channel("127.0.0.1:2") as second:
        outcomes = producer.publish({"a": first, "b": second}, PACKETS[:1], attempts=2)
    assert not outcomes[0].committed
    gave_up = capsys.readouterr().err.splitlines()[-1]
    assert gave_up.startswith("gave up: a: the stream ended with UNAVAILABLE") and "; b: the stream ended" in gave_up


def test_it_gives_up_in_the_end():
    with Server(lambda _, seq, __: busy(seq)) as server:
        outcomes = producer.publish({"a": server.channel}, PACKETS[:1], attempts=3)
    assert not outcomes[0].committed and outcomes[0].later
    assert len(server.streams) == 3
