"""Writes the README's tables from the code: `python deploy/readme_tables.py` (a test checks that it was done)."""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gateway import app, settings
from gateway.api import errors
from gateway.api.chat import ChatRequest
from gateway.api.openai import CHAT, MODELS
from gateway.dataplane.body import DROPPED, PROMPT_LOGPROBS, REFUSED
from gateway.dataplane.serving import ENDPOINTS
from gateway.domain import analysis, rollout
from gateway.domain import errors as domain_errors
from gateway.telemetry import Metrics

README = Path(__file__).parents[1] / "README.md"


def settings_table() -> str:
    """Every setting."""
    return _table(("setting", "default", "meaning"), ((f"`{r.name}`", _code(r.default), r.meaning)
                                                      for r in settings.table()))


def errors_table() -> str:
    """Every error code of the gateway's own, with its status and what the caller may do about it."""
    meanings = dict(re.findall(r"[├└]── (\w+) +(.+)", str(domain_errors.__doc__)))
    by_code = {kind.code: meanings.get(name, "something else went wrong in the gateway; its log says what")
               for name, kind in vars(domain_errors).items()
               if isinstance(kind, type) and issubclass(kind, domain_errors.SwitchyardError)}
    return _table(("code", "status", "meaning"), (
        (f"`{code}`", str(status), by_code[code]) for code, status in errors.codes().items()))


def metrics_table() -> str:
    """Every metric."""
    return _table(("metric", "labels", "meaning"), ((f"`{name}`", labels, meaning)
                                                    for name, labels, meaning in Metrics(1).described()))


def routes_table() -> str:
    """Every route, the applications' first."""
    rows = [(f"`POST {path}`", "tenant's key", "vLLM's own, streaming or not") for path in ENDPOINTS]
    rows.append((f"`POST {CHAT.path}`", "tenant's key", "the simple door: " + ", ".join(
        f"`{name}`" for name in ChatRequest.__struct_fields__)))
    rows += [(f"`GET {MODELS.path}`", "tenant's key", "what this key may use"),
             (f"`GET {MODELS.path}/{{id}}`", "tenant's key", "one of them")]
    for path, method, summary in _web_routes():
        key = "operator's or metrics key" if path == "/metrics" else "operator's key" if "admin" in path else "none"
        rows.append((f"`{method} {path}`", key, summary))
    return _table(("route", "key", "what it does"), rows)


def fields_table() -> str:
    """The body's fields that the gateway sets or refuses."""
    rows = [(f"`{name}`", "dropped", "the gateway sets it, or leaves it to vLLM") for name in sorted(DROPPED)]
    refused = {**REFUSED, "prompt_logprobs": PROMPT_LOGPROBS, "echo": f"with `logprobs`: {PROMPT_LOGPROBS}"}
    return _table(("field", "a caller's is", "why"), [*rows, *(
        (f"`{name}`", "refused with 400", reason) for name, reason in sorted(refused.items()))])


def diagram() -> str:
    """The phases and moves of a rollout, as GitHub draws them."""
    return f"```mermaid\n{rollout.diagram()}```\n"


def requests_table() -> str:
    """How many requests a verdict needs."""
    weights = sorted({weight for needed in analysis.REQUESTS_NEEDED.values() for weight in needed})
    return _table(("harm", *(f"weight {weight} %" for weight in weights)), (
        (harm, *(f"{needed[weight]:,}" for weight in weights)) for harm, needed in analysis.REQUESTS_NEEDED.items()))


TABLES: Mapping[str, Callable[[], str]] = MappingProxyType({
    "settings": settings_table, "errors": errors_table, "metrics": metrics_table, "routes": routes_table,
    "fields": fields_table, "diagram": diagram, "requests": requests_table,
})


def filled(text: str) -> str:
    """The README's text with every table as the code has it now; KeyError for a table that it does not hold."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise KeyError(f"README.md has no place for the table of {name}: {begin.strip()} … {end}")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}{table()}{end}{rest.split(end, 1)[1]}"
    return text


def _web_routes() -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        made = app.build(settings.load(redis_url="redis://127.0.0.1", state_path=folder))
        paths = made.openapi()["paths"]
    found = [(path, method.upper(), str(route["summary"])) for path, methods in paths.items()
             for method, route in methods.items()]
    return sorted(found, key=lambda row: (row[0].startswith("/admin"), row[0], row[1]))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
