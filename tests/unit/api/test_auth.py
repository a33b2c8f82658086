"""Only a valid key opens a door, and no answer says which part of it was wrong."""

from dataclasses import replace
from hashlib import sha256

import pytest

from gateway.api.auth import Callers, Operators, presented
from gateway.domain.errors import NotAuthenticated
from gateway.domain.model import ApiKey, Snapshot
from gateway.domain.operators import Asker, Operator, Role
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
    operators = Operators("op", Snapshot.empty, reader="prom")
    operators.check_reader(bearer("prom"))
    operators.check_reader(bearer("op"))
    assert operators.identify(bearer("op")) == Asker("operator", Role.ADMIN)
    for text, door in (("prom", operators.identify), ("x", operators.identify), ("x", operators.check_reader)):
        with pytest.raises(NotAuthenticated):
            door(bearer(text))


ALICE = Operator(name="alice", role=Role.VIEWER, prefix="sy-operator-00000001", created_at=0.0,
                 sha256=sha256(b"alices").hexdigest())


def test_a_named_operator_is_known_by_name_and_role_until_revoked() -> None:
    snapshots = [Snapshot.of(1, {ALICE.path: ALICE})]
    operators = Operators("op", lambda: snapshots[-1])
    assert operators.identify(bearer("alices")) == Asker("alice", Role.VIEWER)
    operators.check_reader(bearer("alices"))
    snapshots.append(Snapshot.of(2, {ALICE.path: replace(ALICE, revoked_at=1.0)}))
    for door in (operators.identify, operators.check_reader):
        with pytest.raises(NotAuthenticated):
            door(bearer("alices"))


def test_without_a_metrics_key_only_operators_read_metrics() -> None:
    operators = Operators("op", Snapshot.empty)
    operators.check_reader(bearer("op"))
    with pytest.raises(NotAuthenticated):
        operators.check_reader(bearer("prom"))
