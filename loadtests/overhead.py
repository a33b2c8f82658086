"""What the gateway adds to a request: through it and straight to the replica, turn by turn, on one machine.

    python -m loadtests.overhead [--connections 1 8 64] [--seconds 5] [--rounds 3] [--json FILE]

The replica is the fake of the tests, which answers at once, so all that is measured is overhead; it says nothing of an
engine's speed. The load comes from wrk (Debian: apt-get install wrk). CPU is that of the gateway's process, from /proc.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import Admin, descendants, gateway, running, wait_until
from tests.fixtures.redis import free_port

MESSAGES = '[{"role":"user","content":"Which platform does the night train leave from, and is it on time?"}]'
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of wrk: latencies in milliseconds; `cpu`: the gateway's microseconds per request (0: not measured)."""

    rate: float
    p50: float
    p99: float
    cpu: float = 0.0


def wrk(folder: Path, url: str, model: str, key: str, connections: int, seconds: int, pids: list[int]) -> Run:
    """Ask for `seconds` over so many connections; any answer but 200 ends the benchmark."""
    script = folder / "post.lua"
    body = json.dumps(f'{{"model":"{model}","messages":{MESSAGES},"max_tokens":12}}')
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = {body}\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {key}"\n')
    before = sum(map(cpu_seconds, pids))
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script),
         f"{url}/v1/chat/completions"], capture_output=True, text=True, check=True).stdout
    spent = sum(map(cpu_seconds, pids)) - before
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"Not every answer was good:\n{out}")
    requests = int(_found(r"(\d+) requests in", out)[1])
    return Run(requests / seconds, _milliseconds(out, "50%"), _milliseconds(out, "99%"), spent / requests * 1e6)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def middle(runs: list[Run]) -> Run:
    """The median of each figure."""
    return Run(*(statistics.median(getattr(run, name) for run in runs) for name in ("rate", "p50", "p99", "cpu")))


def measure(connections: list[int], seconds: int, rounds: int) -> dict[int, tuple[Run, Run]]:
    """For each number of connections: direct and through the gateway."""
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder, port, replica = Path(made), free_port(), free_port()
        write_adapter(folder / "adapter")
        command = [sys.executable, "-m", "tests.fakes.vllm", "--port", str(replica)]
        with running(command, folder / "fake.log"), \
                gateway(folder, port, replicas=f"r0=http://127.0.0.1:{replica}") as process:
            admin = Admin(port)
            wait_until(lambda: all(view["healthy"] for view in admin("GET", "/replicas")["data"]))
            key = admin.add_tenant("acme")
            served = admin.add_adapter("acme", "support", folder / "adapter")["served_name"]
            workers = [pid for pid in descendants(process.pid)
                       if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            found = {}
            for count in connections:
                direct, through = [], []
                for _ in range(rounds):
                    direct.append(wrk(folder, f"http://127.0.0.1:{replica}", served, key, count, seconds, []))
                    through.append(wrk(folder, admin.url, "support", key, count, seconds, workers))
                found[count] = middle(direct), middle(through)
            return found


def table(found: dict[int, tuple[Run, Run]]) -> Table:
    """The figures as a table."""
    shown = Table(title="Gateway beside going direct (fake replica)")
    for name in ("connections", "direct p50 / p99 ms", "gateway p50 / p99 ms", "added p50 / p99 ms", "p50 ratio",
                 "requests/s direct → gateway", "gateway CPU µs/request"):
        shown.add_column(name, justify="right")
    for count, (direct, through) in found.items():
        shown.add_row(
            str(count), f"{direct.p50:.2f} / {direct.p99:.2f}", f"{through.p50:.2f} / {through.p99:.2f}",
            f"{through.p50 - direct.p50:.2f} / {through.p99 - direct.p99:.2f}", f"{through.p50 / direct.p50:.1f}",
            f"{direct.rate:.0f} → {through.rate:.0f}", f"{through.cpu:.0f}")
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=int, default=5, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="the medians are printed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    found = measure(given.connections, given.seconds, given.rounds)
    Console(width=140).print(table(found))
    if given.json:
        given.json.write_text(json.dumps({n: [asdict(run) for run in pair] for n, pair in found.items()}, indent=2))


def _found(pattern: str, text: str) -> "re.Match[str]":
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"wrk said something unexpected:\n{text}")
    return found


def _milliseconds(out: str, percentile: str) -> float:
    found = _found(rf"{percentile}\s+([0-9.]+)(us|ms|s)\b", out)
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    main()
