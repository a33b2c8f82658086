"""The report at the end: one page and one picture with all that a run has to tell, and nothing from outside."""

import json
import re
from pathlib import Path
from typing import Any

from adapters.compare import Comparison, Side
from adapters.data.tokens import TokenStats
from adapters.training.report import RunReport, write
from adapters.training.shown import Metrics
from tests.fixtures.runs import run_plan, step_line, summary

EVIL = "<script>alert('x')</script>"


def test_the_page_tells_everything(tmp_path: Path) -> None:
    page = _written(tmp_path, _report(tmp_path))
    for told in ("acme-desk", "early stop", "2 validations brought nothing", "2.475 → 1.750", "5.0 GiB",
                 "8 = 4 × 2 × 1", "12,345 (1.76%)", "out of memory: batch 4 → 2", "billing", "60 (66.7%)", "torch",
                 "2.13", "1:35", "&#34;rank&#34;: 8", "Good day, this is the desk.", "I do not know.", "+3.25"):
        assert told in page, told


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = _written(tmp_path, _report(tmp_path))
    assert not re.search(r"<(link|script|iframe|object)\b|\bsrc\s*=|@import|url\((?!#)", page)
    assert not [link for link in re.findall(r'href\s*=\s*"([^"]*)"', page) if not link.startswith("#")]


def test_what_comes_from_the_data_cannot_become_markup(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.jsonl"
    rejects.write_text(json.dumps({"line": 1, "field": EVIL, "reason": EVIL}) + "\n")
    example = Comparison(messages=({"role": "user", "content": EVIL},), expected=EVIL, base=Side(EVIL, -1.0),
                         adapter=Side(EVIL, None))
    page = _written(tmp_path, _report(
        tmp_path, labels={EVIL: 1}, examples=[example], rejects=[rejects], recipe={"base_model": EVIL},
        metrics=Metrics((step_line(1),), ((1, EVIL),))))
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 8


def test_rejected_rows_are_counted_by_reason_whatever_their_numbers(tmp_path: Path) -> None:
    paths = []
    for name, count in (("a", 3), ("b", 2)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(
            json.dumps({"line": i, "field": f"messages[{i}].role", "reason": "unknown"}) + "\n" for i in range(count)))
    page = _written(tmp_path, _report(tmp_path, rejects=paths))
    assert re.search(r'<td class="number">5</td><td>messages\[…\]\.role</td><td class="text">unknown</td>', page)


def test_the_charts_show_loss_lengths_and_classes(tmp_path: Path) -> None:
    drawn = _drawn(_written(tmp_path, _report(tmp_path)))
    assert {"validation, best 1.875 at step 20", "max_length 64", "3 rows cut", "tokens/s", "delivery", "256"} <= drawn
    png = (tmp_path / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert _written(tmp_path, _report(tmp_path)) == _written(tmp_path, _report(tmp_path))


def test_a_run_without_steps_classes_or_examples_still_has_a_page(tmp_path: Path) -> None:
    page = _written(tmp_path, _report(tmp_path, metrics=Metrics((), ()), labels={}, examples=[], timings={}))
    assert "The rows have no classes." in page
    assert "Before and after" not in page
    assert "no guard had to step in" in page


def test_names_that_look_like_formulas_or_that_no_font_has_are_only_text(tmp_path: Path) -> None:
    names = {"$5 or $6", "退款", "a_{b"}
    assert names <= _drawn(_written(tmp_path, _report(tmp_path, labels=dict.fromkeys(names, 1))))


def _report(folder: Path, **fields: Any) -> RunReport:
    validations = {10: 2.25, 20: 1.875, 30: 2.0}
    steps = tuple(step_line(step, validation_loss=validations.get(step)) for step in range(1, 31))
    values: dict[str, Any] = {
        "plan": run_plan(folder), "summary": summary(), "metrics": Metrics(steps, ((7, "out of memory: batch 4 → 2"),)),
        "recipe": {"lora": {"rank": 8}}, "counts": {"read": 103, "rejected": 3}, "timings": {"training": 95.0},
        "tokens": TokenStats(rows=90, tokens=9000, learned_tokens=3000, truncated=3, masked=0, refused=0, longest=200,
                             max_length=64, histogram={16: 50, 64: 37, 256: 3}),
        "labels": {"billing": 60, "delivery": 30}, "library_versions": {"torch": "2.13"},
        "examples": [Comparison(
            messages=({"role": "user", "content": "When?"},), expected=None, base=Side("I do not know.", -0.5),
            adapter=Side("Good day, this is the desk.", -0.25), lift=3.25)],
    }
    return RunReport(**{**values, **fields})


def _written(folder: Path, run: RunReport) -> str:
    html, png = write(folder, run)
    assert png == folder / "report.png"
    return html.read_text(encoding="utf-8")


def _drawn(page: str) -> set[str]:
    """The words in the picture."""
    return {text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)}
