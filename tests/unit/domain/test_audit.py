"""The hash chain: whatever is done to a change or to their order is found, and where."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.audit import digest_of_writes, hash_of, link_of, verify
from gateway.domain.model import Change

LENGTH = 6


def change(revision: int, **fields: Any) -> Change:
    return replace(Change(actor="alice", action="tenant.create", target="tenant/acme", at=1_700_000_000.25 + revision,
                          detail={"number": revision}, revision=revision, writes_digest=f"{revision:064x}"), **fields)


def chained(*changes: Change, previous: str = "") -> list[Change]:
    """The changes, oldest first, as gateways would have chained them."""
    made: list[Change] = []
    for each in changes:
        linked = replace(each, previous=previous)
        made.append(replace(linked, hash=hash_of(linked)))
        previous = made[-1].hash
    return made


def whole() -> list[Change]:
    return chained(*(change(n) for n in range(1, LENGTH + 1)))


def broken_at(changes: list[Change], **options: Any) -> int | None:
    found = verify(reversed(changes), **options).broken
    return found.revision if found else None


def test_an_untouched_chain_holds_and_tells_its_head() -> None:
    changes = whole()
    report = verify(reversed(changes), until=LENGTH)
    assert report.broken is None
    assert (report.chained, report.unchained, report.first_revision, report.last_revision) == (LENGTH, 0, 1, LENGTH)
    assert report.head == changes[-1].hash


def test_an_empty_audit_holds_only_at_revision_0() -> None:
    assert broken_at([]) is None
    assert broken_at([], until=1) == 1


@pytest.mark.parametrize("fields", [
    {"actor": "bob"}, {"action": "tenant.delete"}, {"target": "tenant/beta"}, {"at": 0.0}, {"detail": {}},
    {"detail": {"number": 3.0}}, {"writes_digest": "0" * 64}, {"previous": "0" * 64}, {"hash": "0" * 64},
])
@pytest.mark.parametrize("position", range(LENGTH))
def test_a_change_that_is_altered_is_named(fields: dict[str, Any], position: int) -> None:
    changes = whole()
    changes[position] = replace(changes[position], **fields)
    assert broken_at(changes) == position + 1


def test_an_altered_change_with_its_hash_made_anew_is_found_at_the_next() -> None:
    changes = whole()
    forged = replace(changes[2], actor="bob")
    changes[2] = replace(forged, hash=hash_of(forged))
    assert broken_at(changes) == 4


@pytest.mark.parametrize(("tamper", "revision"), [
    (lambda c: c[1:], 1), (lambda c: c[:2] + c[3:], 3), (lambda c: c[:-1], LENGTH),
    (lambda c: [*c[:3], c[2], *c[3:]], 4), (lambda c: [c[0], c[2], c[1], *c[3:]], 2), (lambda c: c[3:], 1),
])
def test_changes_that_are_missing_doubled_or_reordered_are_found(
    tamper: Callable[[list[Change]], list[Change]], revision: int,
) -> None:
    assert broken_at(tamper(whole()), until=LENGTH) == revision


def test_the_first_of_several_breaks_is_told() -> None:
    changes = whole()
    for position in (1, 4):
        changes[position] = replace(changes[position], actor="bob")
    assert broken_at(changes) == 2


def test_changes_from_before_the_chain_are_unchained_not_broken() -> None:
    old = [change(1), change(2)]
    new = chained(*(change(n) for n in (3, 4)), previous=link_of(old[-1]))
    report = verify(reversed([*old, *new]), until=4)
    assert (report.broken, report.chained, report.unchained) == (None, 2, 2)
    assert verify(reversed(old)).head == ""


def test_the_last_unchained_change_is_held_by_the_first_chained_one() -> None:
    old = [change(1), change(2)]
    new = chained(change(3), previous=link_of(old[-1]))
    assert broken_at([old[0], replace(old[1], actor="bob"), *new]) == 3


@pytest.mark.parametrize("cut", range(2, LENGTH + 1))
def test_hashes_cannot_be_taken_away_from_the_beginning_on(cut: int) -> None:
    changes = [replace(c, hash="", previous="") if c.revision <= cut else c for c in whole()]
    if cut < LENGTH:
        assert broken_at(changes) == cut + 1
    else:
        report = verify(reversed(changes))
        assert (report.chained, report.unchained) == (0, LENGTH), "all of it looks old: an expected hash tells"
        assert broken_at(changes, expected=(LENGTH, whole()[-1].hash)) == LENGTH


def test_a_change_without_a_hash_after_one_with_is_broken() -> None:
    changes = whole()
    changes[-1] = replace(changes[-1], hash="", previous="")
    assert broken_at(changes) == LENGTH


def test_a_chain_made_anew_is_found_by_a_hash_that_was_kept() -> None:
    kept = whole()[3].hash
    forged = chained(change(1, actor="bob"), *(change(n) for n in range(2, LENGTH + 1)))
    assert broken_at(forged) is None
    assert broken_at(forged, expected=(4, kept)) == 4
    assert broken_at(whole(), expected=(4, kept)) is None
    assert broken_at(whole(), expected=(LENGTH + 1, kept)) == LENGTH + 1


def test_what_lies_before_since_is_not_looked_at() -> None:
    changes = whole()
    changes[0] = replace(changes[0], actor="bob")
    assert broken_at(changes) == 1
    assert broken_at(changes, since=3) is None
    assert broken_at(changes[2:], since=3) is None
    assert broken_at(changes[3:], since=3) == 3


def test_the_digest_of_writes_depends_on_all_of_them_and_on_the_secret_id() -> None:
    digests = {digest_of_writes(*given) for given in (
        ("a", {}), ("b", {}), ("a", {"p": "1"}), ("a", {"p": "2"}), ("a", {"q": "1"}), ("a", {"p": "1", "q": ""}))}
    assert len(digests) == 6
    assert digest_of_writes("a", {"p": "1", "q": "2"}) == digest_of_writes("a", {"q": "2", "p": "1"})


TEXT = st.text(max_size=5)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5)


@given(st.dictionaries(TEXT, JSON, max_size=3), TEXT, st.floats(0, 4e9))
def test_any_change_can_be_hashed_and_the_hash_is_of_its_values_alone(
    detail: dict[str, Any], actor: str, at: float,
) -> None:
    made = change(1, detail=detail, actor=actor, at=at)
    assert hash_of(made) == hash_of(replace(made, detail=dict(reversed(detail.items())), hash="whatever"))
    assert hash_of(made) != hash_of(replace(made, actor=actor + "x"))
