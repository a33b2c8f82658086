"""Whatever is sent to the admin API, it answers as its OpenAPI says, and never with a 500."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, assume, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from tests.fixtures.artifacts import write_adapter
from tests.fixtures.fleet import OPERATOR_KEY, Bench, without_signals
from tests.fixtures.redis import RealValkey, free_port, until


@asynccontextmanager
async def served(bench: Bench, port: int) -> AsyncIterator[None]:
    """A gateway's admin API on loopback, with a tenant, a replica and a ready version."""
    async with bench.replica("one") as replica, bench.gateway() as gateway:
        await gateway.add(replica)
        await gateway.tenants.create("operator", "acme")
        await gateway.catalog.register("operator", "acme", "support", str(write_adapter(bench.folder / "a")))
        server = uvicorn.Server(uvicorn.Config(gateway.web, port=port, log_level="critical", lifespan="off"))
        server.capture_signals = without_signals  # type: ignore[method-assign]
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        yield
        server.should_exit = True
        await task


@pytest.fixture(scope="module")
def admin_url(shared_valkey: RealValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("admin"), free_port()
    started, ended = threading.Event(), threading.Event()

    async def live() -> None:
        bench = Bench(shared_valkey.url, f"schemathesis-{port}", Path(folder))
        async with served(bench, port):
            started.set()
            await asyncio.to_thread(ended.wait)
        bench.close()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    assert started.wait(30)
    yield f"http://127.0.0.1:{port}"
    ended.set()
    thread.join(30)


load_all_checks()
# What is well-formed may still be refused: names that are taken, sources that do not exist, addresses that are none.
# And 502 and 503 are answers of ours: a source may be out of reach.
TOO_STRICT: list[Any] = [*CHECKS.get_by_names(["positive_data_acceptance", "not_a_server_error"])]
OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_finds_a_500_or_an_answer_that_the_documentation_does_not_know(
    admin_url: str, mode: schemathesis.GenerationMode,
) -> None:
    api = schemathesis.openapi.from_url(f"{admin_url}/admin/v1/openapi.json")
    operations = [found.ok() for found in api.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= 45
    for operation in operations:
        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case[Any]) -> None:
            # On the wire an empty list is not there, and a list of one is its item: what was to be refused is in order.
            assume(all(len(value or ()) > 1 for value in _containers(case)))
            response = case.call_and_validate(headers=OPERATOR, excluded_checks=TOO_STRICT)
            assert response.status_code != 500, response.text

        check()


def _containers(case: schemathesis.Case[Any]) -> list[Any]:
    """The values of the query that are no plain ones."""
    return [value for value in (case.query or {}).values() if value is None or isinstance(value, list | dict)]
