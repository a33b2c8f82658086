"""The tally adds up to what a plain count of the same records gives, however they are cut."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from hashlib import blake2b
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane.tally import MAX_KEYS, Tally, outcome_of
from gateway.domain.counts import LATENCY_EDGES, LENGTH_EDGES, TrackCounts
from gateway.domain.windows import Fields, TallyKey
from gateway.telemetry import Record

DONE = Record(
    "r", "chat.completions", 10.0, received=11.0, tenant="acme", key="k1", adapter="support", version="2",
    track="canary", stream=True, status=200, finish_reason="stop", completion_tokens=11, first_byte=11.5, ended=13.5,
    epoch="salt-1.000000", subject="caller")

seconds = st.floats(0, 400)
records = st.builds(
    lambda received, first, rest, status, **fields: Record(
        "r", "chat", 0.0, received=received, status=status, tenant="acme", adapter="support", key="k1",
        first_byte=received + first if first else 0.0, ended=received + first + rest, **fields),
    received=seconds, first=seconds, rest=seconds, status=st.sampled_from([200, 200, 200, 400, 429, 499, 500, 503]),
    version=st.sampled_from(["1", "2"]), track=st.sampled_from(["stable", "canary"]),
    epoch=st.sampled_from(["", "a-1.000000", "a-2.000000"]), subject=st.text(max_size=3), stream=st.booleans(),
    error=st.sampled_from(["", "", "", "upstream_timeout", "replica_unreachable", "internal_error"]),
    finish_reason=st.sampled_from(["stop", "length", "error", ""]), completion_tokens=st.integers(0, 200_000),
    empty_output=st.booleans(), json_asked=st.booleans(), json_invalid=st.booleans())


@given(st.lists(records, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_whatever_the_calls_and_however_they_are_cut_the_sum_is_a_plain_count(
    calls: list[Record], cuts: list[int],
) -> None:
    tallies = [Tally(), Tally()]  # two processes
    taken: list[tuple[TallyKey, Fields]] = []
    for number, record in enumerate(calls):
        if number in cuts:
            taken += tallies[0].take().items()
        tallies[number % 2].add(record)
    for tally in tallies:
        taken += tally.take().items()
    found = {key: reduce(add, (TrackCounts.from_fields(f) for k, f in taken if k == key)) for key, _ in taken}
    assert {tuple(key): counts.to_fields() for key, counts in found.items()} == counted_plainly(calls)


def counted_plainly(calls: list[Record]) -> dict[tuple[str, str, int, str, str], dict[str, int]]:
    """The same by another way: every field is a sum over the calls that it is about."""
    found: dict[tuple[str, str, int, str, str], Counter[str]] = {}
    for r in calls:
        if r.epoch:
            found.setdefault((r.tenant, r.adapter, int(r.version), r.track, r.epoch), Counter()).update(plain(r))
    return {key: {name: count for name, count in counts.items() if count} for key, counts in found.items()}


def plain(r: Record) -> Counter[str]:
    kind = outcome_of(r)
    fine, streams, size = not kind, r.stream and r.first_byte > 0, r.completion_tokens
    group = blake2b((r.subject or r.key).encode(), digest_size=1, person=b"group").digest()[0] % 64
    one: Counter[str] = Counter({"requests": 1, f"subject_groups:{group}": 1})
    if kind:
        one[kind] = 1
    if fine:
        one["empty_outputs"], one["length_finishes"] = int(r.empty_output), int(r.finish_reason == "length")
        one["json_asked"], one["json_invalid"] = int(r.json_asked), int(r.json_asked and r.json_invalid)
        one["completion_tokens"] = size
    if fine and streams:
        one[f"time_to_first_token:{place(LATENCY_EDGES, r.first_byte - (r.received or r.started))}"] += 1
    if fine and streams and size > 1:
        one[f"inter_token_latency:{place(LATENCY_EDGES, (r.ended - r.first_byte) / (size - 1))}"] += 1
    if fine and size:
        one[f"seconds_per_output_token:{place(LATENCY_EDGES, (r.ended - (r.received or r.started)) / size)}"] += 1
    if fine and (size or r.empty_output):
        one[f"output_tokens:{place(LENGTH_EDGES, size)}"] += 1
    return one


def place(edges: tuple[float, ...], value: float) -> int:
    return sum(edge < value for edge in edges)


@pytest.mark.parametrize(("changes", "outcome"), [
    ({}, ""),
    ({"status": 400}, "client_errors"),
    ({"status": 499, "error": "caller_gone"}, "client_errors"),
    ({"status": 500}, "server_errors"),
    ({"status": 500, "error": "internal_error"}, "server_errors"),
    ({"finish_reason": "error"}, "server_errors"),
    ({"status": 502, "error": "upstream_failed"}, "upstream_failures"),
    ({"status": 503, "error": "adapter_not_loaded"}, "upstream_failures"),
    ({"error": "replica_unreachable", "finish_reason": "error"}, "upstream_failures"),
    ({"status": 504, "error": "upstream_timeout"}, "timeouts"),
    ({"error": "upstream_timeout", "finish_reason": "error"}, "timeouts"),
])
def test_every_way_to_end_is_one_outcome(changes: dict[str, object], outcome: str) -> None:
    assert outcome_of(replace(DONE, **changes)) == outcome  # type: ignore[arg-type]


def test_times_count_from_when_the_request_was_complete_not_from_its_first_byte() -> None:
    tally = Tally()
    tally.add(DONE)
    [(key, fields)] = tally.take().items()
    counts = TrackCounts.from_fields(fields)
    assert key == ("acme", "support", 2, "canary", "salt-1.000000")
    for name, value in {"time_to_first_token": 0.5, "inter_token_latency": 0.2, "output_tokens": 11,
                        "seconds_per_output_token": 2.5 / 11}.items():
        middle = counts.histogram(name).quantile(0.5)
        assert middle is not None and value / 1.2 < middle < value * 1.2, name


def test_a_call_that_no_rollout_split_is_not_tallied() -> None:
    tally = Tally()
    tally.add(replace(DONE, epoch=""))
    assert tally.take() == {}


def test_what_was_taken_is_not_counted_again() -> None:
    tally = Tally()
    tally.add(DONE)
    assert tally.take() and not tally.take()


def test_too_many_versions_are_not_kept_but_counted_as_dropped() -> None:
    tally = Tally()
    for number in range(MAX_KEYS + 3):
        tally.add(replace(DONE, adapter=f"a{number}"))
    tally.add(DONE)
    assert (len(tally.take()), tally.dropped) == (MAX_KEYS, 4)
