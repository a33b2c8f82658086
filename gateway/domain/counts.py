"""What became of one track's calls, as counts that add up: over gateways, over seconds, in any order.

A latency histogram has eight buckets per doubling, 1 ms to 5 min (the metrics' own buckets are two to two and a half
times apart: a p95 that is 1.3 times as long would often stay in its bucket). A request touches one bucket of each, so
what is folded stays small: `fields` leaves zeros out, and its values are added with HINCRBY.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from operator import add
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias

Buckets: TypeAlias = tuple[int, ...]
"""Samples per bucket: one bucket up to each edge, and a last one above all edges."""

LATENCY_EDGES: tuple[float, ...] = tuple(0.001 * 2 ** (step / 8) for step in range(147))
"""Seconds, each 2^(1/8) = 1.0905 times the one before, 1 ms to 311 s: three steps are 1.297, just within 1.3."""
LENGTH_EDGES: tuple[float, ...] = tuple(sorted({float(round(2 ** (step / 4))) for step in range(69)}))
"""Tokens, four steps per doubling where whole numbers allow, 1 to 131072."""

SUBJECT_GROUPS = 64
"""Into how many groups subjects are hashed, to see how unevenly they ask."""


def bucket_of(edges: tuple[float, ...], value: float) -> int:
    """The index of the bucket that `value` falls into: that of the first edge not below it, else the last."""
    return bisect_left(edges, value)


@dataclass(frozen=True)
class Histogram:
    """Samples over edges. `counts` has one more entry than `edges`; they may be fractions, when they are expected."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    @cached_property
    def above(self) -> tuple[float, ...]:
        """How many samples are above each edge; a last entry, 0, stands for an edge beyond all."""
        return (*tuple(accumulate(reversed(self.counts)))[-2::-1], 0)

    @cached_property
    def samples(self) -> float:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The value that `share` of the samples do not exceed, interpolated in its bucket; None without samples."""
        if not self.samples:
            return None
        wanted = share * self.samples
        below = 0.0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= wanted:
                return self._within(bucket, (wanted - below) / count)
            below += count
        return self.edges[-1]

    def mirrored(self) -> "Histogram":
        """The histogram of 1/value, so that what is said of long tails can be said of short ones."""
        return Histogram(tuple(1 / edge for edge in reversed(self.edges)), self.counts[::-1])

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.edges, tuple(map(add, self.counts, other.counts)))

    def _within(self, bucket: int, part: float) -> float:
        if bucket == 0 or bucket == len(self.edges):
            return self.edges[min(bucket, len(self.edges) - 1)]
        low, high = self.edges[bucket - 1], self.edges[bucket]
        return low * math.exp(part * math.log(high / low))


_NO_LATENCIES: Buckets = (0,) * (len(LATENCY_EDGES) + 1)
_NO_LENGTHS: Buckets = (0,) * (len(LENGTH_EDGES) + 1)
_NO_GROUPS: Buckets = (0,) * SUBJECT_GROUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackCounts:
    """What became of the calls of one version on one track in one window.

    `requests` are all that ended. `client_errors` (4xx: the caller's own) are counted apart: they are no attempt of
    the version. `empty_outputs`, `length_finishes` (finish reason `length`) and the histograms are of completed calls;
    `json_invalid` of those where JSON was asked for (`json_asked`). One sample per call in each histogram, the
    inter-token latency being the call's mean, because the gaps of one call are no independent witnesses.

    `subject_groups`: requests by a hash of their subject, into `SUBJECT_GROUPS` groups (another hash than the split's).
    Distinct subjects cannot be added up over gateways and seconds; these can, and tell what the analysis needs.
    """

    edges: ClassVar[Mapping[str, tuple[float, ...]]] = MappingProxyType({
        "time_to_first_token": LATENCY_EDGES,
        "inter_token_latency": LATENCY_EDGES,
        "seconds_per_output_token": LATENCY_EDGES,
        "output_tokens": LENGTH_EDGES,
    })

    requests: int = 0
    client_errors: int = 0
    server_errors: int = 0
    upstream_failures: int = 0
    timeouts: int = 0
    empty_outputs: int = 0
    length_finishes: int = 0
    json_asked: int = 0
    json_invalid: int = 0
    completion_tokens: int = 0
    time_to_first_token: Buckets = _NO_LATENCIES
    inter_token_latency: Buckets = _NO_LATENCIES
    seconds_per_output_token: Buckets = _NO_LATENCIES
    output_tokens: Buckets = _NO_LENGTHS
    subject_groups: Buckets = _NO_GROUPS

    @property
    def errors(self) -> int:
        """Calls that failed by no fault of the caller."""
        return self.server_errors + self.upstream_failures + self.timeouts

    @property
    def attempts(self) -> int:
        """Calls that the version could answer."""
        return self.requests - self.client_errors

    @property
    def completed(self) -> int:
        """Calls that were answered to the end."""
        return self.attempts - self.errors

    @property
    def calls_per_subject(self) -> float | None:
        """As a call sees it: the mean over calls of how many calls its subject has made; None if unknown.

        Independent calls scatter over the groups with a variance of n/groups; those that come in clusters with so
        many times that (the method of random groups), to within 18 %. One busy subject among many shows.
        """
        total = sum(self.subject_groups)
        if not total:
            return None
        scatter = sum((count - total / SUBJECT_GROUPS) ** 2 for count in self.subject_groups)
        return max(1.0, scatter / (total * (1 - 1 / SUBJECT_GROUPS)))

    def histogram(self, name: str) -> Histogram:
        """The named histogram with its edges."""
        return Histogram(self.edges[name], getattr(self, name))

    def __add__(self, other: "TrackCounts") -> "TrackCounts":
        def together(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            return tuple(map(add, mine, theirs)) if isinstance(mine, tuple) else mine + theirs

        return TrackCounts(**{name: together(name) for name in _EMPTY})

    def to_fields(self) -> dict[str, int]:
        """As hash fields without zeros: `requests` → 12, `time_to_first_token:37` → 2."""
        found: dict[str, int] = {}
        for name in _EMPTY:
            value = getattr(self, name)
            if isinstance(value, tuple):
                found.update({f"{name}:{bucket}": count for bucket, count in enumerate(value) if count})
            elif value:
                found[name] = value
        return found

    @classmethod
    def from_fields(cls, found: Mapping[str, int]) -> Self:
        """The counts of `to_fields`, or of sums of such; fields that this release does not know are dropped."""
        def kept(name: str, empty: Any) -> Any:
            if isinstance(empty, tuple):
                return tuple(found.get(f"{name}:{bucket}", 0) for bucket in range(len(empty)))
            return found.get(name, 0)

        return cls(**{name: kept(name, empty) for name, empty in _EMPTY.items()})


_EMPTY: Mapping[str, Any] = MappingProxyType({field.name: field.default for field in fields(TrackCounts)})
