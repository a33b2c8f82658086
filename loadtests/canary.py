"""A canary's whole course under live traffic, in front of fake replicas: does every caller stay on its track?

    python -m loadtests.canary [--callers 400] [--clients 8] [--bad errors|slow|short | --moves 60] [--workers 2]

Without --bad, version 2 is shifted 5 → 50 → 100 percent by hand and promoted. For every weight the share of callers on
the canary is printed beside the binomial bound, then how many callers ever went back, how many requests failed, and how
long a move took from the call until every gateway process followed it. With --bad, version 2 fails requests, is slow,
or says less, and the analyst has to roll it back by itself: what it decided, after how many requests and seconds.
"""

import argparse
import math
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, fake_replica, gateway, wait_until
from tests.fixtures.redis import free_port

RELEASE = "/tenants/acme/adapters/support/release"
WEIGHTS = (5, 50, 100)
BAD: dict[str, dict[str, Any]] = {
    "errors": {"error_rate": 0.2, "error_status": 500}, "slow": {"latency": 0.03, "token_delay": 0.004},
    "short": {"tokens": 5, "tokens_elsewhere": 12},
}
PLAN = "25% for 5s min 200, 50% for 5s min 200, 100%; within 10m else hold"


@dataclass
class Traffic:
    """Callers that keep asking; each is one subject. `seen`: caller → the versions that answered it, in order."""

    url: str
    key: str
    callers: int
    clients: int
    seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: int = 0
    asked: int = 0

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        """Ask until the block ends."""
        self._stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def round(self) -> dict[str, str]:
        """Which version answers each caller now: the last of at least one more answer each."""
        before = {caller: len(self.seen[caller]) for caller in self.names}
        wait_until(lambda: all(len(self.seen[c]) >= before[c] + 2 for c in self.names), 300)
        return {caller: self.seen[caller][-1] for caller in self.names}

    @property
    def names(self) -> list[str]:
        return [f"caller-{n}" for n in range(self.callers)]

    def _ask(self, first: int) -> None:
        names = self.names[first::self.clients]
        with httpx.Client(base_url=self.url, timeout=30, headers={"authorization": f"Bearer {self.key}"}) as client:
            while not self._stop.is_set():
                for name in names:
                    answer = client.post("/v1/chat/completions", headers={"x-switchyard-session": name}, json={
                        "model": "support", "messages": [{"role": "user", "content": "hi"}], "stream": True})
                    self.asked += 1
                    if answer.status_code == 200 and "[DONE]" in answer.text:
                        self.seen[name].append(answer.headers["x-switchyard-version"])
                    else:
                        self.failed += 1
                    if self._stop.is_set():
                        return


def bound(callers: int, weight: float) -> float:
    """How far from the weight (percent) the share of so many callers may lie, 999 times in 1000."""
    share = weight / 100
    return 100 * 3.29 * math.sqrt(share * (1 - share) / callers)


def effect(admin: Admin, workers: int, move: str, name: str, value: float, **body: Any) -> float:
    """Seconds from the call of a move to the last answer by which some gateway process had not followed it yet: `name`
    of what it explains then is `value`."""
    started = time.perf_counter()
    admin("POST", f"{RELEASE}/{move}", json=body)
    followed = time.perf_counter()
    fresh = 0
    while fresh < 6 * workers:  # each on a connection of its own: so many in a row hardly leave a process out
        explained = admin("POST", "/tenants/acme/adapters/support/route:explain", json={"subject": "x"})
        if explained[name] == value:
            fresh += 1
        else:
            fresh, followed = 0, time.perf_counter()
    return followed - started


def good(admin: Admin, traffic: Traffic, workers: int) -> bool:
    """Shift by hand, watch, promote; whether all promises held."""
    admin("POST", f"{RELEASE}/start", json={"canary": 2, "plan": "5% gate, 50% gate, 100% gate"})
    held = True
    tracks: dict[str, str] = {}
    for weight in WEIGHTS:
        if weight != WEIGHTS[0]:
            admin("POST", f"{RELEASE}/shift", json={"weight": weight})
        now = traffic.round()
        share = 100 * sum(version == "2" for version in now.values()) / len(now)
        back = sum(tracks.get(caller) == "2" != version for caller, version in now.items())
        within = abs(share - weight) <= bound(traffic.callers, weight) + 1e-9
        held = held and within and not back
        print(f"weight {weight:3}%: {share:5.1f}% of {traffic.callers} callers on the canary "
              f"(bound ±{bound(traffic.callers, weight):.1f}), {back} went back")
        tracks = now
        if weight == 50:
            effects = sorted(effect(admin, workers, "shift", "weight", 50 + n, weight=50 + n) for n in range(1, 31))
            print(f"from call to effect on every process: median {1e3 * effects[15]:.0f} ms, "
                  f"worst of {len(effects)} {1e3 * effects[-1]:.0f} ms")
            tracks = traffic.round()
    admin("POST", f"{RELEASE}/promote", json={"reason": "the scenario"})
    traffic.round()
    returned = sum(any(a == "2" and b == "1" for a, b in pairwise(seen)) for seen in traffic.seen.values())
    print(f"callers that ever went from the canary back: {returned}; "
          f"failed requests: {traffic.failed} of {traffic.asked}")
    return held and not returned and not traffic.failed


def moves(admin: Admin, traffic: Traffic, workers: int, rounds: int) -> bool:
    """Abort and promote by turns: how long until every gateway process follows, and whether a request failed."""
    took: dict[str, list[float]] = {"abort": [], "promote": []}
    stable, canary = 1, 2
    for _ in range(rounds):
        for move, plan, answers in (("abort", "100% gate", stable), ("promote", "1% gate, 100%", canary)):
            admin("POST", f"{RELEASE}/start", json={"canary": canary, "plan": plan})
            took[move].append(effect(admin, workers, move, "version", answers))
        stable, canary = canary, stable
    for move, seconds in took.items():
        ranked = sorted(1e3 * one for one in seconds)
        print(f"{move}, from call to effect on every process: median {ranked[len(ranked) // 2]:.0f} ms, "
              f"p99 {ranked[int(0.99 * len(ranked))]:.0f} ms over {len(ranked)}")
    print(f"failed requests: {traffic.failed} of {traffic.asked}")
    return not traffic.failed


def bad(admin: Admin, traffic: Traffic) -> bool:
    """Start by a plan and wait for the analyst; whether it rolled back."""
    started = time.monotonic()
    admin("POST", f"{RELEASE}/start", json={"canary": 2, "plan": PLAN})
    wait_until(lambda: admin("GET", RELEASE)["rollout"]["phase"] in ("aborted", "promoted"), 600)
    release = admin("GET", RELEASE)
    rollout = release["rollout"]
    print(f"{rollout['phase']} at step {rollout['step'] + 1} after {time.monotonic() - started:.1f} s and "
          f"{traffic.asked} requests: {rollout['reason']}")
    for finding in (release["analysis"] or {}).get("findings", []):
        if finding["verdict"] == "fail":
            print(f"  {finding['metric']}: stable {finding['stable']}, canary {finding['canary']}: {finding['reason']}")
    return bool(rollout["phase"] == "aborted" and release["stable"] == 1)


def run(given: argparse.Namespace) -> bool:
    """Start everything, do the scenario."""
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder, port = Path(made), free_port()
        for seed in (1, 2):
            write_adapter(folder / f"v{seed}", seed=seed)
        with fake_replica(folder, "r0", "--token-delay", "0.001") as (url, _), \
                gateway(folder, port, replicas=f"r0={url}", workers=str(given.workers), log_level="error"):
            admin = Admin(port)
            key = admin.add_tenant("acme")
            admin.add_adapter("acme", "support", folder / "v1")
            served = admin.add_adapter("acme", "support", folder / "v2")["served_name"]
            if given.bad:
                behave(folder, only=served, **BAD[given.bad])
            with Traffic(admin.url, key, given.callers, given.clients).running() as traffic:
                if given.moves:
                    return moves(admin, traffic, given.workers, given.moves)
                return bad(admin, traffic) if given.bad else good(admin, traffic, given.workers)


def behave(folder: Path, **behaviour: Any) -> None:
    """Steer the fake replica."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "r0.sock")), base_url="http://r0") as replica:
        replica.post("/fake/behaviour", json=behaviour).raise_for_status()


def main() -> None:
    """Run the scenario; exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=400)
    parser.add_argument("--clients", type=int, default=8, help="connections that ask at a time")
    parser.add_argument("--workers", type=int, default=2, help="gateway processes")
    parser.add_argument("--moves", type=int, default=0, help="only time so many aborts and promotes")
    parser.add_argument("--bad", choices=sorted(BAD))
    sys.exit(0 if run(parser.parse_args()) else 1)


if __name__ == "__main__":
    main()
