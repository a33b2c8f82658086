"""Watches the rolling quality of what is sampled: shows it as metrics, tells webhooks when it crosses its floor.

Every gateway shows all; a crossing is told by the one that notes it first in Redis, and so once.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from gateway.controlplane.changes import Snapshots
from gateway.controlplane.quality import Candidates, Scores
from gateway.domain.errors import SwitchyardError
from gateway.domain.happening import Happening, Kind, Notify
from gateway.domain.model import Release
from gateway.domain.quality import Rolling, Standing, Watched, Who, is_below, watched
from gateway.system import System

ACTOR: Final = "quality"
STEP_SECONDS: Final = 2.0

Show: TypeAlias = Callable[[Mapping[tuple[str, ...], float], Mapping[tuple[str, ...], float]], None]
"""(rolling means by (tenant, adapter, version), floors by (tenant, adapter)); see `Metrics.show_quality`."""


class Drift:
    """One loop. `share`: percent, for opt-ins that name none."""

    def __init__(
        self, snapshots: Snapshots, scores: Scores, candidates: Candidates, show: Show, system: System, log: Any, *,
        notify: Notify, share: float,
    ) -> None:
        self._snapshots = snapshots
        self._scores = scores
        self._candidates = candidates
        self._show = show
        self._system = system
        self._log = log
        self._notify = notify
        self._share = share
        self._known: set[Who] = set()
        self._is_away = False

    async def run(self) -> None:
        """Step for ever; ends by cancellation."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            try:
                await self.step()
            except SwitchyardError as error:
                if not self._is_away:
                    self._log.info("quality_waits", error=error.message)
                self._is_away = True
            else:
                self._is_away = False

    async def step(self) -> None:
        """Read, show, tell; costs Redis nothing while no tenant has opted in. RegistryUnavailable."""
        found = {each.who: each for each in watched(self._snapshots.current, self._share).values()}
        self._known |= found.keys()
        for who in self._known - found.keys():
            await self._candidates.end(who)  # whoever took the opt-in back may have failed to
            self._known.discard(who)
        standings = await self._scores.read(found)
        self._show(*_numbers(found, standings))
        for who, versions in standings.items():
            for number, standing in versions.items():
                await self._judge(found[who], number, standing)

    async def _judge(self, each: Watched, number: int, standing: Standing) -> None:
        now = is_below(standing.is_below, standing.rolling, each.policy)
        if now == standing.is_below or not await self._scores.cross(each.who, number, is_below=now):
            return
        who, policy, rolling = each.who, each.policy, standing.rolling
        if policy.floor is None or rolling.mean is None:
            return  # it is below no more since nothing is asked of it any more: no news
        release = self._snapshots.current.releases.get((who.tenant, who.adapter))
        self._notify(Happening(
            kind=Kind.QUALITY, tenant=who.tenant, adapter=who.adapter, actor=ACTOR, at=self._system.now(),
            release=release or Release(tenant=who.tenant, adapter=who.adapter),
            reason=_reason(number, rolling, rolling.mean, policy.floor, is_below=now),
            analysis={"version": number, "quality": rolling.mean, "floor": policy.floor, "below": now,
                      "samples": rolling.samples, "failures": rolling.failures}))


def _numbers(
    found: Mapping[Who, Watched], standings: Mapping[Who, Mapping[int, Standing]],
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """What the metrics show: means of versions with samples enough, and floors."""
    means: dict[tuple[str, ...], float] = {
        (who.tenant, who.adapter, str(number)): standing.rolling.mean or 0.0
        for who, versions in standings.items() for number, standing in versions.items()
        if standing.rolling.samples >= found[who].policy.min_samples}
    floors: dict[tuple[str, ...], float] = {
        (who.tenant, who.adapter): each.policy.floor
        for who, each in found.items() if each.policy.floor is not None}
    return means, floors


def _reason(number: int, rolling: Rolling, mean: float, floor: float, *, is_below: bool) -> str:
    stands = f"is below its floor {floor:g}" if is_below else f"is above its floor {floor:g} again"
    return f"Version {number}'s quality is {mean:.3f} over {rolling.samples} sampled answers, and {stands}."
