"""Serves one fake replica: `python -m tests.fakes.vllm --port N | --uds PATH`."""

import argparse

import uvicorn

from tests.fakes.vllm.app import FakeVllm
from tests.fakes.vllm.behaviour import Behaviour


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.vllm", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="listen on this port of 127.0.0.1")
    where.add_argument("--uds", metavar="PATH", help="listen on this unix socket")
    parser.add_argument("--base-model", default="base", help="the base model's served name")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="before the first token")
    parser.add_argument("--token-delay", type=float, default=0.0, metavar="SECONDS", help="between tokens")
    parser.add_argument("--tokens", type=int, default=12, help="tokens in an answer")
    parser.add_argument("--max-loras", type=int, default=4, help="adapters that run at once")
    parser.add_argument("--max-cpu-loras", type=int, default=16, help="adapters kept in memory")
    parser.add_argument("--max-requests", type=int, default=256, help="requests that run at once")
    parser.add_argument("--api-key", help="the replica's key")
    return parser.parse_args()


def main() -> None:
    """Serve until told to stop."""
    given = options()
    fake = FakeVllm(
        given.base_model, max_loras=given.max_loras, max_cpu_loras=given.max_cpu_loras,
        max_requests=given.max_requests, api_key=given.api_key,
        behaviour=Behaviour(latency=given.latency, token_delay=given.token_delay, tokens=given.tokens))
    uvicorn.run(fake, port=given.port or 0, uds=given.uds, loop="uvloop", http="httptools", ws="none",
                access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
