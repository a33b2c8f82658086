"""What became of the calls that live rollouts split, added up in this process until it is folded into Redis.

Every call costs one look at its epoch, and nothing more without a rollout; with one, a few additions.
"""

from collections.abc import Mapping
from hashlib import blake2b

from gateway.domain.counts import LATENCY_EDGES, LENGTH_EDGES, SUBJECT_GROUPS, bucket_of
from gateway.domain.windows import Fields, TallyKey
from gateway.telemetry import Record

MAX_KEYS = 10_000
"""So many versions of rollouts in one second; the calls of others are not counted."""

_TIMEOUTS = frozenset({"upstream_timeout"})
_FAILURES = frozenset({
    "upstream_failed", "replica_unreachable", "no_healthy_replica", "adapter_not_loaded", "unavailable"})
_GROUP = b"group"  # keeps this hash apart from the split's


def _names(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}:{bucket}" for bucket in range(count))


_FIRST_TOKEN = _names("time_to_first_token", len(LATENCY_EDGES) + 1)
_INTER_TOKEN = _names("inter_token_latency", len(LATENCY_EDGES) + 1)
_PER_TOKEN = _names("seconds_per_output_token", len(LATENCY_EDGES) + 1)
_TOKENS = _names("output_tokens", len(LENGTH_EDGES) + 1)
_GROUPS = _names("subject_groups", SUBJECT_GROUPS)


class Tally:
    """Adds up records; one per process, for its one thread. `dropped`: calls that `MAX_KEYS` left uncounted."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], dict[str, int]] = {}
        self.dropped = 0

    def add(self, record: Record) -> None:
        """Count a closed record. Pure arithmetic: no I/O, and no exception for any record."""
        if not record.epoch:
            return
        key = (record.tenant, record.adapter, record.version, record.track, record.epoch)
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= MAX_KEYS:
                self.dropped += 1
                return
            counts = self._counts[key] = {}
        _count(counts, record)

    def take(self) -> Mapping[TallyKey, Fields]:
        """Everything since the last time; from now on it counts anew."""
        taken, self._counts = self._counts, {}
        return {
            TallyKey(tenant, adapter, int(version or 0), track, epoch): counts
            for (tenant, adapter, version, track, epoch), counts in taken.items()
        }


def outcome_of(record: Record) -> str:
    """Which count of `TrackCounts` besides `requests` a call goes into; empty: it was answered to the end.

    A stream that breaks off has status 200 and an error; an error that the replica tells in a stream is its finish
    reason. A caller that hangs up (499) counts as its own fault.
    """
    if record.error in _TIMEOUTS:
        return "timeouts"
    if record.error in _FAILURES:
        return "upstream_failures"
    if 400 <= record.status < 500:
        return "client_errors"
    if record.status != 200 or record.error or record.finish_reason == "error":
        return "server_errors"
    return ""


def _count(counts: dict[str, int], record: Record) -> None:
    _add(counts, "requests")
    subject = (record.subject or record.key).encode(errors="surrogatepass")
    _add(counts, _GROUPS[blake2b(subject, digest_size=1, person=_GROUP).digest()[0] % SUBJECT_GROUPS])
    outcome = outcome_of(record)
    if outcome:
        _add(counts, outcome)
        return
    if record.empty_output:
        _add(counts, "empty_outputs")
    if record.finish_reason == "length":
        _add(counts, "length_finishes")
    if record.json_asked:
        _add(counts, "json_asked")
        if record.json_invalid:
            _add(counts, "json_invalid")
    _count_output(counts, record)


def _count_output(counts: dict[str, int], record: Record) -> None:
    """Times are from when the whole request was here: how fast a caller sends it is no work of the version."""
    tokens, began = record.completion_tokens, record.received or record.started
    streamed = record.stream and record.first_byte
    if streamed:
        _add(counts, _FIRST_TOKEN[bucket_of(LATENCY_EDGES, record.first_byte - began)])
    if tokens:
        counts["completion_tokens"] = counts.get("completion_tokens", 0) + tokens
        _add(counts, _PER_TOKEN[bucket_of(LATENCY_EDGES, (record.ended - began) / tokens)])
        if streamed and tokens > 1:
            _add(counts, _INTER_TOKEN[bucket_of(LATENCY_EDGES, (record.ended - record.first_byte) / (tokens - 1))])
    if tokens or record.empty_output:
        _add(counts, _TOKENS[bucket_of(LENGTH_EDGES, tokens)])


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
