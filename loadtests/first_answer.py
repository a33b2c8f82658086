"""How long from registering an adapter to its first answer, against a running gateway.

    python -m loadtests.first_answer ADAPTER_FOLDER [--url http://127.0.0.1:8080] [--operator-key …] [--times 5]

Each time the folder is uploaded as an adapter of a new name, and asked as soon as it is ready: upload, checks, copy,
load, proof and the answer's whole way are in it. The adapters are retired at the end.
"""

import argparse
import os
import statistics
import time
import uuid
from pathlib import Path

import httpx

from adapters.register import register

TENANT = "first-answer"


def measure(folder: Path, url: str, key: str, times: int) -> list[tuple[float, float]]:
    """For each time: seconds until the version was ready, and until its first answer was there."""
    operator = httpx.Client(base_url=f"{url}/admin/v1", timeout=600, headers={"authorization": f"Bearer {key}"})
    with operator:
        if not any(tenant["name"] == TENANT for tenant in operator.get("/tenants").raise_for_status().json()["data"]):
            operator.post("/tenants", json={"name": TENANT}).raise_for_status()
        made = operator.post(f"/tenants/{TENANT}/keys", json={"name": "benchmark"}).raise_for_status().json()
        found, names = [], [f"a-{uuid.uuid4().hex[:8]}" for _ in range(times)]
        try:
            found = [one(folder, name, url, key, made["key"]) for name in names]
        finally:
            for name in names:
                operator.put(f"/tenants/{TENANT}/adapters/{name}/release", json={"stable": None})
                operator.delete(f"/tenants/{TENANT}/adapters/{name}/versions/1")
            operator.delete(f"/tenants/{TENANT}/keys/{made['id']}").raise_for_status()
    return found


def one(folder: Path, name: str, url: str, operator_key: str, tenant_key: str) -> tuple[float, float]:
    """Register the folder under `name` and ask it once."""
    started = time.perf_counter()
    register(folder, f"{TENANT}/{name}", url=url, key=operator_key)
    ready = time.perf_counter() - started
    httpx.post(f"{url}/v1/chat", json={"adapter_name": name, "prompt": "Hello", "max_tokens": 1}, timeout=600,
               headers={"authorization": f"Bearer {tenant_key}"}).raise_for_status()
    return ready, time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an adapter, as PEFT saves it")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--operator-key", default=os.environ.get("SWITCHYARD_OPERATOR_KEY"), required=False)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    if not given.operator_key:
        parser.error("give --operator-key or set SWITCHYARD_OPERATOR_KEY")
    found = measure(given.folder, given.url, given.operator_key, given.times)
    for what, index in (("ready", 0), ("first answer", 1)):
        seconds = [pair[index] for pair in found]
        print(f"{what}: median {statistics.median(seconds):.2f} s, first {seconds[0]:.2f} s, "
              f"{min(seconds):.2f} to {max(seconds):.2f} s over {len(seconds)}")


if __name__ == "__main__":
    main()
