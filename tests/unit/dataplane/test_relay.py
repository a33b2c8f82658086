"""An answer is the replica's, byte for byte, but for the model's name and the usage that nobody asked for."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane.relay import Facts, Renamer, StreamRelay

SERVED = "acme/support@1-0123456789ab"


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps({"model": SERVED, **fields}, separators=(",", ":")).encode() + b"\n\n"


STREAM = b"".join((
    chunk(choices=[{"index": 0, "delta": {"content": ""}, "finish_reason": None}]),
    chunk(choices=[{"index": 0, "delta": {"content": f'say "model":"{SERVED}" \u00e9'}, "finish_reason": None}]),
    chunk(choices=[{"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}]),
    chunk(choices=[], usage={"prompt_tokens": 18, "completion_tokens": 12}),
    b"data: [DONE]\n\n",
))


def relayed(parts: list[bytes], *, hide_usage: bool) -> tuple[bytes, Facts]:
    facts = Facts()
    relay = StreamRelay(Renamer(SERVED, "support"), facts, hide_usage=hide_usage)
    return b"".join(relay.feed(part) for part in parts) + relay.flush(), facts


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut_into_packets(cuts: list[int], hide_usage: bool) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in pairwise(edges) if b > a]
    assert relayed(parts, hide_usage=hide_usage) == relayed([STREAM], hide_usage=hide_usage)


def test_the_model_is_renamed_where_it_is_a_field_and_nowhere_else() -> None:
    out, _ = relayed([STREAM], hide_usage=False)
    events = [json.loads(e[6:]) for e in out.decode().split("\n\n") if e.startswith("data: {")]
    assert {event["model"] for event in events} == {"support"}
    assert events[1]["choices"][0]["delta"]["content"] == f'say "model":"{SERVED}" \u00e9'
    assert out == STREAM.replace(b'"model":"' + SERVED.encode() + b'"', b'"model":"support"')


def test_the_usage_event_is_hidden_only_when_the_caller_did_not_ask_and_counted_either_way() -> None:
    for hide, seen in ((True, 0), (False, 1)):
        out, facts = relayed([STREAM], hide_usage=hide)
        assert out.count(b'"usage"') == seen
        assert (facts.prompt_tokens, facts.completion_tokens, facts.finish_reason) == (18, 12, "stop")
        assert out.endswith(b"data: [DONE]\n\n")


@given(st.lists(st.integers(0, 900), max_size=8), st.booleans())
def test_a_stream_without_its_usage_event_is_what_it_had_been_unasked(cuts: list[int], known: bool) -> None:
    """vLLM moves the fingerprint to the usage event when there is one."""
    last = [chunk(choices=[{"index": n, "delta": {"content": ""}, "finish_reason": "stop"}]) for n in range(2)]
    mark = b',"system_fingerprint":"vllm-1"}\n\n'
    between, done = chunk(choices=[{"index": 1, "delta": {"content": "x"}, "finish_reason": None}]), b"data: [DONE]\n\n"
    usage = chunk(choices=[], usage={"prompt_tokens": 1}, system_fingerprint="vllm-1")
    asked = last[0] + between + last[1] + usage + done
    unasked = last[0].replace(b"}\n\n", mark) + between + last[1].replace(b"}\n\n", mark) + done
    edges = [0, *sorted(c for c in cuts if c < len(asked)), len(asked)]
    relay = StreamRelay(Renamer("a", "a"), Facts(), hide_usage=True, fingerprint=b'"vllm-1"' if known else None)
    parts = [asked[a:b] for a, b in pairwise(edges)]
    assert b"".join(relay.feed(part) for part in parts) + relay.flush() == unasked
    assert relay.fingerprint == b'"vllm-1"'


def test_a_stream_whose_usage_event_never_comes_keeps_its_end() -> None:
    relay = StreamRelay(Renamer("a", "a"), Facts(), hide_usage=True)
    last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    assert relay.feed(last) + relay.flush() == last


def test_a_stream_that_breaks_off_loses_no_byte() -> None:
    out, _ = relayed([STREAM[:250]], hide_usage=True)
    assert out == STREAM[:250].replace(b'"model":"' + SERVED.encode() + b'"', b'"model":"support"')


@given(st.text(min_size=1))
def test_any_name_a_caller_asks_for_comes_back_as_valid_json(asked: str) -> None:
    out = Renamer(SERVED, asked)(json.dumps({"model": SERVED}, separators=(",", ":")).encode())
    assert json.loads(out.decode("utf-8", "surrogatepass"))["model"] == asked


@pytest.mark.parametrize(("payload", "expected"), [
    (b'{"usage":{"input_tokens":3,"output_tokens":4},"stop_reason":"end_turn"}', (3, 4, "end_turn")),
    (b'{"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":0}}}', (5, 0, "")),
    (b'{"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"output_tokens":7}}',
     (0, 7, "max_tokens")),
    (b'{"response":{"status":"completed","usage":{"input_tokens":1,"output_tokens":2}}}', (1, 2, "completed")),
    (b'{"status":"incomplete","usage":{"input_tokens":1,"output_tokens":2}}', (1, 2, "incomplete")),
    (b'{"usage":{"prompt_tokens":9,"total_tokens":9},"data":[]}', (9, 0, "")),
    (b'{"error":{"message":"x"}}', (0, 0, "error")),
    (b'{"usage":null,"choices":null}', (0, 0, "")),
    (b"not json", (0, 0, "")),
])
def test_usage_and_finish_reason_are_read_in_every_dialect(payload: bytes, expected: tuple[int, int, str]) -> None:
    facts = Facts()
    facts.learn(payload)
    assert (facts.prompt_tokens, facts.completion_tokens, facts.finish_reason) == expected
