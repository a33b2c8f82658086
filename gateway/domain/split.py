"""Which callers the canary gets, and which requests the shadow: a hash, so that every process says the same.

A caller's bucket depends on the rollout's salt and the caller alone, and a weight takes the buckets below it. So
raising the weight only ever adds callers to the canary, no state is shared, and another salt puts others first.
"""

from hashlib import blake2b

from gateway.domain.errors import InvalidRequest

BUCKETS = 10_000
"""A bucket is a hundredth of a percent, the finest weight."""

_SPLIT, _SHADOW = b"split", b"shadow"  # keeps the two hashes apart
_ROUNDING = 1e-6


def bucket(salt: str, subject: str) -> int:
    """The subject's place in the rollout, from 0 (first to get the canary) to 9,999."""
    return _place(_SPLIT, salt, subject)


def is_canary(salt: str, subject: str, weight: float) -> bool:
    """Does the subject get the canary at `weight` percent? Once it does, it does at every higher weight."""
    return bucket(salt, subject) < _buckets(weight)


def is_sampled(salt: str, request_id: str, share: float) -> bool:
    """Is a copy of this request for the shadow, which gets `share` percent? Independent of the canary's split."""
    return _place(_SHADOW, salt, request_id) < _buckets(share)


def check_percent(value: object, param: str) -> float:
    """`value` as a weight or share: a number from 0 to 100 with 2 decimals at most, else InvalidRequest on `param`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
        exact = round(value, 2)
        if abs(value - exact) < _ROUNDING:
            return exact
    raise InvalidRequest(
        f"{param} {value!r:.40} is no percentage: use a number from 0 to 100 with 2 decimals at most, such as 5 "
        "or 12.5.", param=param)


def _buckets(percent: float) -> int:
    return round(percent * (BUCKETS // 100))


def _place(domain: bytes, salt: str, text: str) -> int:
    # A caller may send text that is no Unicode (a lone surrogate in JSON); it has a bucket like any other.
    data = f"{salt}\0{text}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=domain).digest()) % BUCKETS
