"""`POST /evaluate` says 200 or 409 about a version, and everything else in the words of the OpenAI error shape."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.evaluation.calls import Sampling
from adapters.evaluation.service import ServiceSettings, make_app
from adapters.gateway_client import Door
from tests.fakes.serving import serving
from tests.fixtures.artifacts import write_adapter
from tests.fixtures.processes import OPERATOR_KEY, Admin, fake_replica, gateway, running, wait_until
from tests.fixtures.redis import RealValkey, free_port

KEY = "evaluation-key"


def _voice(folder: Path) -> str:
    """The one word that a version of these bytes answers when it may say no more."""
    return f"voice-{sha256((folder / 'adapter_model.safetensors').read_bytes()).hexdigest()[:8]}"


class Service:
    """The service in front of a gateway with acme/support@1, its folders of models and golden sets."""

    def __init__(self, admin: Admin, folder: Path) -> None:
        self.admin = admin
        self.models, self.golden_sets = folder / "models", folder / "golden-sets"
        self.golden_sets.mkdir()
        admin.add_tenant("acme")
        self.first, self.second = (write_adapter(self.models / f"v{seed}", seed=seed, base_model="base")
                                   for seed in (1, 2))
        write_adapter(self.models / "v0", base_model="another")
        self.version = admin.add_adapter("acme", "support", self.first)
        self.settings = ServiceSettings(
            key=KEY, golden_sets=self.golden_sets, state=folder / "state", door=Door(admin.url),
            operator_key=OPERATOR_KEY, models=self.models, adapter="acme/support", sampling=Sampling(max_tokens=1))
        self.write("firsts", [_voice(self.first)] * 18 + ["other"] * 2)
        self.write("seconds", [_voice(self.second)] * 20)
        self.write("texts", [_voice(self.first)] * 20, scorer="exact")
        (self.golden_sets / "broken.jsonl").write_text("{}\n")

    def write(self, name: str, expected: Sequence[str], scorer: str = "label") -> None:
        path = self.golden_sets / f"{name}.jsonl"
        path.write_text("".join(json.dumps({
            "id": f"q{number}", "messages": [{"role": "user", "content": f"Number {number}?"}], "expected": answer,
            "scorer": scorer}) + "\n" for number, answer in enumerate(expected)))


@pytest.fixture(scope="module")
def service(shared_valkey: RealValkey) -> Iterator[Service]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sy-") as made:
        folder = Path(made)
        with fake_replica(folder, "r0", "--max-loras", "8") as (replica, _), gateway(
            folder, port, replicas=f"r0={replica}", redis_url=shared_valkey.url, registry="evaluate-service",
        ):
            yield Service(Admin(port), folder)


@pytest.fixture(scope="module")
def caller(service: Service) -> Iterator[httpx.Client]:
    socket = service.models.parent / "service.sock"
    with serving(make_app(service.settings), socket), httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://service", timeout=60,
        headers={"authorization": f"Bearer {KEY}"},
    ) as client:
        yield client


def _ask(caller: httpx.Client, **body: Any) -> httpx.Response:
    return caller.post("/evaluate", json=body)


def test_a_version_over_its_baseline_is_200_with_what_was_found(caller: httpx.Client, service: Service) -> None:
    answer = _ask(caller, version="acme/support@1", golden_set_id="firsts", baseline_f1=0.45, threshold=0.02)
    found = answer.json()
    assert (answer.status_code, found["pass"]) == (200, True)
    assert found["f1_score"] == pytest.approx((36 / 38 + 0) / 2)
    assert found["latency_ms_p99"] > 0
    assert found["message"] == "Passed. macro_f1 0.4737 reaches the given baseline's 0.4500 +0.02."
    record = service.admin("GET", "/tenants/acme/adapters/support/evaluations")["data"][0]
    assert (record["id"], record["passed"], record["digest"]) == (found["record"], True, found["digest"])
    assert (record["value"], record["floor"]) == (found["f1_score"], pytest.approx(0.47))


def test_a_version_below_its_baseline_is_409_and_recorded(caller: httpx.Client, service: Service) -> None:
    answer = _ask(caller, version="acme/support@1", golden_set_id="firsts", baseline_f1=0.9, threshold=0.02)
    found = answer.json()
    assert (answer.status_code, found["pass"]) == (409, False)
    assert found["message"] == "Failed. macro_f1 0.4737 is below the given baseline's 0.9000 +0.02."
    record = service.admin("GET", "/tenants/acme/adapters/support/evaluations")["data"][0]
    assert (record["passed"], record["floor"]) == (False, pytest.approx(0.92))


def test_without_a_baseline_the_version_is_compared_with_what_serves(caller: httpx.Client) -> None:
    found = _ask(caller, version="acme/support@1", golden_set_id="texts")
    assert found.status_code == 200
    assert "from the base model is +1.0000" in found.json()["message"]
    assert (found.json()["f1_score"], found.json()["metric"], found.json()["value"]) == (None, "score", 1.0)


def test_a_folder_is_registered_once_and_evaluated_as_its_version(caller: httpx.Client, service: Service) -> None:
    answers = [_ask(caller, model_path="v2", golden_set_id="seconds", baseline_f1=0.9) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert [answer.json()["version"] for answer in answers] == ["acme/support@2"] * 2
    full = _ask(caller, model_path=str(service.first), golden_set_id="seconds", baseline_f1=0.9)
    assert (full.status_code, full.json()["version"], full.json()["f1_score"]) == (409, "acme/support@1", 0.0)


def test_a_digest_is_the_version_that_has_it(caller: httpx.Client, service: Service) -> None:
    digest = service.version["digest"]
    found = _ask(caller, model_path=digest, golden_set_id="firsts", baseline_f1=0.4)
    assert (found.status_code, found.json()["version"], found.json()["digest"]) == (200, "acme/support@1", digest)


def test_a_golden_set_is_found_by_its_digest_too(caller: httpx.Client) -> None:
    by_name = _ask(caller, version="acme/support@1", golden_set_id="firsts", baseline_f1=0.4).json()["golden_set"]
    for name in (by_name["digest"], by_name["digest"][:12]):
        by_digest = _ask(caller, version="acme/support@1", golden_set_id=name, baseline_f1=0.4).json()
        assert by_digest["golden_set"] == by_name


@pytest.mark.parametrize(("body", "status", "code", "param", "said"), [
    ({"golden_set_id": "none"}, 404, "not_found", "golden_set_id", "no golden set 'none'; there is broken, firsts"),
    ({"golden_set_id": "../golden-sets/firsts"}, 404, "not_found", "golden_set_id", "no golden set"),
    ({"golden_set_id": "f" * 64}, 404, "not_found", "golden_set_id", "no golden set 'fff"),
    ({"version": None, "model_path": "v0"}, 409, "artifact_refused", "model_path", "base_model='base'"),
    ({"version": "acme/support@99"}, 404, "not_found", "version", "no version 99"),
    ({"version": "nobody/support@1"}, 404, "not_found", "version", "nobody"),
    ({"version": "support"}, 422, "invalid_request", None, "write tenant/adapter@number"),
    ({"version": None}, 422, "invalid_request", "version", "Say with version"),
    ({"model_path": "v1"}, 422, "invalid_request", "version", "not with both"),
    ({"version": None, "model_path": "../golden-sets"}, 404, "not_found", "model_path", "There is no artifact"),
    ({"version": None, "model_path": "/etc"}, 404, "not_found", "model_path", "There is no artifact"),
    ({"version": None, "model_path": "v1\0"}, 422, "invalid_request", "model_path", "must be text"),
    ({"version": None, "model_path": "0" * 64}, 404, "not_found", "model_path", "has the digest"),
    ({"golden_set_id": None}, 422, "invalid_request", "golden_set_id", "is missing"),
    ({"golden_set_id": 3}, 422, "invalid_request", "golden_set_id", "must be text"),
    ({"golden_set_id": "broken"}, 422, "invalid_request", None, "line 1, expected: is missing"),
    ({"baseline_f1": 1.5}, 422, "invalid_request", "baseline_f1", "a number from 0 to 1"),
    ({"threshold": "0.1"}, 422, "invalid_request", "threshold", "a number from -1 to 1"),
    ({"golden_set_id": "texts", "baseline_f1": 0.5}, 422, "invalid_request", None, "has no items for the metric"),
    ({"seed": 3}, 422, "invalid_request", "seed", "'seed' is not known; use version"),
])
def test_what_cannot_be_evaluated_is_an_error_and_no_verdict(
    caller: httpx.Client, body: dict[str, Any], status: int, code: str, param: str | None, said: str,
) -> None:
    answer = _ask(caller, **{"version": "acme/support@1", "golden_set_id": "firsts", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("content", "status", "code"), [
    (b"{", 400, "malformed_json"), (b"[]", 422, "invalid_request"), (b" " * 70_000, 413, "body_too_large"),
    (b"[" * 60_000, 400, "malformed_json"),
])
def test_a_body_that_is_no_request_is_refused(
    caller: httpx.Client, content: bytes, status: int, code: str,
) -> None:
    answer = caller.post("/evaluate", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("given", ["", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
def test_only_the_services_own_key_opens_it(caller: httpx.Client, given: str) -> None:
    answer = caller.post("/evaluate", json={}, headers={"authorization": given})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_service_without_a_folder_of_models_takes_none(service: Service, tmp_path: Path) -> None:
    closed = replace(service.settings, models=None)
    with serving(make_app(closed), tmp_path / "s.sock"), httpx.Client(
        transport=httpx.HTTPTransport(uds=str(tmp_path / "s.sock")), base_url="http://service",
        headers={"authorization": f"Bearer {KEY}"},
    ) as caller:
        answer = _ask(caller, model_path="v1", golden_set_id="firsts", baseline_f1=0.4)
    assert (answer.status_code, "--models-dir" in answer.json()["error"]["message"]) == (422, True)


def test_the_command_serves_it_and_says_when_no_gateway_answers(service: Service, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from adapters.commands.evaluate import app; app()", "evaluate-server",
               "--golden-dir", str(service.golden_sets), "--port", str(port), "--state", str(tmp_path / "state"),
               "--url", "http://127.0.0.1:9", "--operator-key", OPERATOR_KEY]

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").text == '{"status":"ok"}'
        except httpx.HTTPError:
            return False

    with running(command, tmp_path / "log", SWITCHYARD_EVALUATION_KEY=KEY):
        wait_until(is_up)
        answer = httpx.post(f"http://127.0.0.1:{port}/evaluate", headers={"authorization": f"Bearer {KEY}"},
                            json={"version": "acme/support@1", "golden_set_id": "firsts"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_unreachable")
