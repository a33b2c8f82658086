"""How a release looks on the command line, from documents that the analyst and the API really make."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from gateway.api.schemas_releases import ReleaseOut
from gateway.cli import release_view as view
from gateway.cli.output import UNREACHABLE, CommandFailed, Output
from gateway.controlplane.analyst import summary
from gateway.domain.analysis import analyse
from gateway.domain.counts import TrackCounts
from gateway.domain.model import Release
from gateway.domain.plan import read
from gateway.domain.rollout import Move, Rollout, Shadow, apply, draw_up
from gateway.system import System

NOW = 1_800_000_000.0
PLAN = read("5% for 10m min 200, 25% for 10m gate, 100%")


def rollout(**fields: Any) -> Rollout:
    drawn = draw_up(None, canary=4, baseline=3, plan=PLAN, salt="s", by="alice", approvals_needed=1)
    return replace(apply(drawn, Move.START, NOW - 60), **fields)


def counts(requests: int, errors: int) -> TrackCounts:
    return replace(TrackCounts(), requests=requests, server_errors=errors)


def numbers(*, errors: int, until: float | None = NOW + 540) -> dict[str, Any]:
    """An analysis as the analyst keeps it."""
    stable, canary = counts(20_000, 20), counts(2_000, errors)
    document = {**analyse(stable, canary, weight=5.0).to_document(), "refused": None,
                "tracks": {"stable": summary(stable), "canary": summary(canary)},
                "decision": {"move": None, "reason": "Step 1 of 3 (5%) takes at least 10m.", "until": until,
                             "held": False, "refused": None}}
    return dict(json.loads(json.dumps(document)))


def document(release: Release, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {**ReleaseOut.of(release, []).model_dump(mode="json"), **fields}
    return found


def release(moved: Rollout | None, **fields: Any) -> dict[str, Any]:
    made = Release(tenant="acme", adapter="support", stable=3, revision=9)
    return document(made.with_rollout(moved) if moved else made, **fields)


def text(*parts: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    made: str = console.file.getvalue()  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(("moved", "said"), [
    (None, "acme/support: version 3 is stable, and there is no rollout."),
    (rollout(), "acme/support: version 3 is stable; version 4 gets 5% (running, 1 more approval needed)."),
    (apply(rollout(), Move.PAUSE, NOW, reason="lunch"),
     "acme/support: version 3 is stable; version 4 gets 5% (paused, 1 more approval needed): lunch"),
    (apply(rollout(), Move.ABORT, NOW, reason="The canary failed at 5%: more errors."),
     "acme/support: version 3 is stable; version 4 was rolled back: The canary failed at 5%: more errors."),
    (apply(rollout(approvals_needed=0), Move.PROMOTE, NOW), "acme/support: version 4 is stable; it was promoted."),
])
def test_one_sentence_says_where_it_stands(moved: Rollout | None, said: str) -> None:
    assert view.headline(release(moved)) == said


def test_the_status_has_both_tracks_the_verdict_and_the_countdown() -> None:
    seen = text(view.status(release(rollout(), analysis=numbers(errors=300)), NOW))
    lines = {line.split()[0]: line for line in seen.splitlines() if line.strip()}
    assert lines["stable"].split()[1:6] == ["3", "95%", "20,000", "20", "(0.1%)"]
    assert lines["canary"].split()[1:6] == ["4", "5%", "2,000", "300", "(15.0%)"]
    assert lines["verdict"].split()[1] == "fail"
    assert "(9m 00s left)" in lines["next"]
    assert "step 1 of 3" in seen
    assert "revision 9" in seen


def test_the_latencies_shown_are_ones_that_the_analyst_tells() -> None:
    assert set(view.LATENCIES) <= summary(TrackCounts()).keys()


def test_before_the_analysts_first_look_the_countdown_is_the_plans() -> None:
    seen = text(view.status(release(rollout()), NOW))
    assert "(9m 00s left)" in seen
    assert "verdict" not in seen


def test_a_move_that_is_refused_says_why_instead_of_what_comes_next() -> None:
    analysis = numbers(errors=2, until=None)
    analysis["decision"]["refused"] = "acme is frozen until tomorrow."
    assert "next     acme is frozen until tomorrow.\n" in text(view.status(release(rollout(), analysis=analysis), NOW))


def test_a_release_without_a_rollout_is_one_line() -> None:
    assert len(text(view.status(release(None), NOW)).splitlines()) == 1


def test_a_shadow_is_shown_beside_the_tracks() -> None:
    made = Release(tenant="acme", adapter="support", stable=3, shadow=Shadow(number=5, share=10.0, salt="s"))
    assert "shadow" in text(view.status(document(made.with_rollout(rollout())), NOW))


def test_the_story_tells_who_moved_it_why_and_by_which_numbers() -> None:
    aborted = apply(rollout(), Move.ABORT, NOW, reason="The canary failed at 5%.")
    moves = [
        {"action": "release.verdict", "actor": "analyst", "at": "2027-01-15T08:00:01Z", "detail": {}},
        {"action": "release.abort", "actor": "analyst", "at": "2027-01-15T08:00:00Z",
         "detail": {"before": {"phase": "running", "weight": 5.0}}}]
    seen = text(*view.story(release(aborted, analysis=numbers(errors=300), warnings=["No evaluation."]), moves))
    assert "Last move: abort by analyst, 2027-01-15T08:00:00Z at 5%." in seen
    assert "started by alice" in seen
    assert "Warning: No evaluation." in seen
    assert "Verdict noted last: fail, at 5%." in seen
    [row] = [line for line in seen.splitlines() if line.strip().startswith("error_rate")]
    assert "0.10%" in row and "15.00%" in row and "fail" in row


def test_a_story_without_a_verdict_says_so() -> None:
    assert "No verdict was noted." in text(*view.story(release(rollout()), []))
    assert len(list(view.story(release(None), []))) == 1


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "1s"), (59, "59s"), (570, "9m 30s"), (7_500, "2h 05m"), (180_000, "2d 2h")])
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert view._duration(seconds) == said


class Still(System):
    """A clock that stands."""

    def now(self) -> float:
        return NOW


LOOKS = [release(rollout()), CommandFailed("No gateway answers.", exit_code=UNREACHABLE)]


@pytest.mark.parametrize(("last", "well"), [
    (apply(rollout(approvals_needed=0), Move.PROMOTE, NOW), True), (apply(rollout(), Move.ABORT, NOW), False)])
@pytest.mark.parametrize("as_json", [True, False])
def test_watching_ends_with_the_rollout_and_says_how(
    last: Rollout, well: bool, as_json: bool, capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []

    def looks() -> Iterator[Any]:
        yield from LOOKS
        yield release(last)
        raise AssertionError("it is over")

    screen = view.Screen(Output(as_json=as_json), 2.0, Still(), slept.append)
    assert screen.follow(looks()) is well
    assert slept == [2.0, 2.0]
    out, err = capsys.readouterr()
    if as_json:
        assert [json.loads(line)["rollout"]["phase"] for line in out.splitlines()] == ["running", last.phase]
        assert json.loads(err)["error"]["message"] == "No gateway answers."
    else:
        assert view.headline(release(last)) in out
