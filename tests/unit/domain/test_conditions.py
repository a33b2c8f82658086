"""What a record says of its conditions is what serves the version, or it is refused with both values."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.domain.conditions import UNSAID, Conditions, settle
from gateway.domain.errors import Conflict
from tests.unit.domain.test_reconcile import version, view

VERSION = replace(version(), base_model="meta/llama-8b", chat_template_sha256="e" * 64)


def replica(name: str, engine: str | None = "0.32.0", base: str = "meta/llama-8b") -> Any:
    return view(name, base_model=base, root="/models/Llama-8B-Instruct", engine_version=engine)


def test_what_is_left_open_is_what_the_registry_and_the_fleet_know() -> None:
    assert settle(UNSAID, VERSION, [replica("a"), replica("b")]) == Conditions(
        base_model="meta/llama-8b", engine_version="0.32.0", chat_template_sha256="e" * 64)


@pytest.mark.parametrize("said", ["meta/llama-8b", "llama-8b", "other/Llama-8B", "/models/Llama-8B-Instruct"])
def test_every_name_of_the_base_is_kept_as_the_versions_own(said: str) -> None:
    assert settle(Conditions(base_model=said), VERSION, [replica("a")]).base_model == "meta/llama-8b"


@pytest.mark.parametrize(("said", "param", "words"), [
    (Conditions(base_model="llama-70b"), "base_model", r"base_model 'llama-70b', but version 1 of acme/support is of "
                                                       "'meta/llama-8b'"),
    (Conditions(engine_version="0.33.0"), "engine_version", r"engine_version '0\.33\.0', but the replicas of "
                                                            r"'meta/llama-8b' run '0\.32\.0'"),
    (Conditions(engine_version="0.40.0"), "engine_version", r"run '0\.32\.0'"),
    (Conditions(chat_template_sha256="f" * 64), "chat_template_sha256", f"'{'f' * 64}', but the manifest of version 1 "
                                                                        f"of acme/support says '{'e' * 64}'"),
])
def test_a_contradiction_is_refused_with_both_values(said: Conditions, param: str, words: str) -> None:
    with pytest.raises(Conflict, match=words) as refused:
        settle(said, VERSION, [replica("a"), replica("b", "0.40.0", base="another")])
    assert refused.value.param == param


def test_a_fleet_of_several_engine_versions_cannot_tell_which_it_was_but_which_it_was_not() -> None:
    mixed = [replica("a"), replica("b", "0.33.0")]
    assert settle(UNSAID, VERSION, mixed).engine_version is None
    assert settle(Conditions(engine_version="0.33.0"), VERSION, mixed).engine_version == "0.33.0"
    with pytest.raises(Conflict, match=r"run '0\.32\.0' and '0\.33\.0'"):
        settle(Conditions(engine_version="0.31.0"), VERSION, mixed)


def test_what_nobody_knows_is_believed() -> None:
    said = Conditions(engine_version="0.31.0", chat_template_sha256="f" * 64, sampling={"n": 1}, latency_ms_p99=2.0)
    unknown = replace(VERSION, chat_template_sha256=None)
    for views in ([], [replica("a", None)]):
        assert settle(said, unknown, views) == replace(said, base_model="meta/llama-8b")
