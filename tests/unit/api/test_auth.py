"""Only a valid key opens a door, and no answer says which part of it was wrong."""

from dataclasses import replace
from hashlib import sha256

import pytest

from gateway.api.auth import Callers, Operators, presented
from gateway.domain.errors import NotAuthenticated
from gateway.domain.model import ApiKey, Snapshot
from gateway.system import System

TEXT = "sy-00000001-secret"
KEY = ApiKey(id="00000001", tenant="acme", name="k", prefix="sy-00000001", created_at=0.0,
             sha256=sha256(TEXT.encode()).hexdigest())


class At(System):
    """A clock that stands still."""

    def now(self) -> float:
        return 1000.0


def callers(key: ApiKey) -> Callers:
    return Callers(lambda: Snapshot.of(1, {key.path: key}), At())


def bearer(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + text.encode())]


@pytest.mark.parametrize("headers", [bearer(TEXT), [(b"authorization", b"bearer  " + TEXT.encode())],
                                     [(b"x-api-key", TEXT.encode())]])
def test_a_valid_key_is_recognised(headers: list[tuple[bytes, bytes]]) -> None:
    assert callers(KEY).identify(headers) == KEY


def test_wrong_expired_and_revoked_keys_are_refused_alike() -> None:
    said = set()
    for key, text in ((KEY, "sy-00000001-wrong"), (replace(KEY, expires_at=1000.0), TEXT),
                      (replace(KEY, revoked_at=1.0), TEXT), (KEY, "")):
        with pytest.raises(NotAuthenticated) as refused:
            callers(key).identify(bearer(text))
        said.add(refused.value.message)
    assert len(said) == 1


def test_a_key_works_until_the_second_it_expires() -> None:
    assert callers(replace(KEY, expires_at=1000.1)).identify(bearer(TEXT)).id == KEY.id


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic abc")], [(b"x-api-key", b"")]])
def test_no_key_is_said_to_be_missing(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotAuthenticated, match="No API key"):
        presented(headers)


def test_the_metrics_key_reads_metrics_and_administers_nothing() -> None:
    operators = Operators("op", reader="prom")
    operators.check_reader(bearer("prom"))
    operators.check_reader(bearer("op"))
    assert operators.actor(bearer("op")) == "operator"
    for text, door in (("prom", operators.actor), ("x", operators.actor), ("x", operators.check_reader)):
        with pytest.raises(NotAuthenticated):
            door(bearer(text))
