"""The commands of the gate: evaluate a version, or serve the gate over HTTP.

Exit codes of `evaluate`: 0 it passed, 1 it failed, 2 it cannot be evaluated so, 3 no gateway answers.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from adapters.evaluation.decide import Baseline, Gate
    from adapters.evaluation.evaluate import Outcome
    from adapters.evaluation.judge import Judge, JudgeSettings
    from adapters.evaluation.plan import Plan
    from adapters.evaluation.service import ServiceSettings
    from adapters.gateway_client import Door
    from adapters.teacher import TeacherSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

PASSED, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
STATE = Path(".switchyard/state")
DEFAULT_URL = f"http://127.0.0.1:{os.environ.get('SWITCHYARD_PORT') or 8080}"

_GATE: dict[str, Any] = {"rich_help_panel": "Gate"}
_ASKING: dict[str, Any] = {"rich_help_panel": "Asking"}
_WHERE: dict[str, Any] = {"rich_help_panel": "Gateway"}
_JUDGE: dict[str, Any] = {"rich_help_panel": "Judge"}

Metric: TypeAlias = Annotated[str, typer.Option(
    help="auto (macro_f1 for labels, else score), score, accuracy, macro_f1, or a scorer's name.", **_GATE)]
Floor: TypeAlias = Annotated[float | None, typer.Option(help="The least value that passes.", **_GATE)]
BaselineName: TypeAlias = Annotated[str, typer.Option(
    "--baseline", help="auto (the stable version, else the base model), stable, base, none, or a number.", **_GATE)]
Threshold: TypeAlias = Annotated[float, typer.Option(
    help="By how much it must be better than the baseline; negative: worse at most.", **_GATE)]
Confidence: TypeAlias = Annotated[float, typer.Option(
    help="Of the paired test's interval; 0: the test is shown but does not decide.", **_GATE)]
SliceDrop: TypeAlias = Annotated[float, typer.Option(
    min=0, help="How far a slice may fall below the baseline's.", **_GATE)]
SliceFloor: TypeAlias = Annotated[float | None, typer.Option(help="The least value of every slice.", **_GATE)]
SliceLeast: TypeAlias = Annotated[int, typer.Option(
    min=1, help="Smaller slices are shown but do not decide.", **_GATE)]
Latency: TypeAlias = Annotated[float | None, typer.Option(
    "--latency-p99-ms", help="The longest p99 latency that passes.", **_GATE)]
MaxErrors: TypeAlias = Annotated[float, typer.Option(
    min=0, max=1, help="The share of calls that may fail.", **_GATE)]
Repeats: TypeAlias = Annotated[int, typer.Option(min=1, help="How often each question is asked.", **_ASKING)]
Concurrency: TypeAlias = Annotated[int, typer.Option(min=1, help="Questions under way at once.", **_ASKING)]
Temperature: TypeAlias = Annotated[float, typer.Option(help="0 is greedy.", **_ASKING)]
TopP: TypeAlias = Annotated[float, typer.Option("--top-p", **_ASKING)]
MaxTokens: TypeAlias = Annotated[int, typer.Option(help="The longest answer, in tokens.", **_ASKING)]
Seed: TypeAlias = Annotated[int, typer.Option(help="Raised by one for each repeat.", **_ASKING)]
Alone: TypeAlias = Annotated[bool, typer.Option(
    "--alone", help="Ask neither the stable version nor the base model.", **_ASKING)]
Fresh: TypeAlias = Annotated[bool, typer.Option(
    "--fresh", help="Forget what an interrupted run has left.", **_ASKING)]
Url: TypeAlias = Annotated[str, typer.Option(envvar="SWITCHYARD_URL", help="The gateway's address.", **_WHERE)]
Key: TypeAlias = Annotated[str | None, typer.Option(
    envvar="SWITCHYARD_API_KEY", help="The tenant's key, which must pin. Default: one is made for the run.", **_WHERE)]
OperatorKey: TypeAlias = Annotated[str | None, typer.Option(
    envvar="SWITCHYARD_OPERATOR_KEY", help="Default: the one in the state folder's operator.key.", **_WHERE)]
State: TypeAlias = Annotated[Path, typer.Option(
    envvar="SWITCHYARD_STATE_PATH", help="State folder; journals and reports go to evaluations/ in it.", **_WHERE)]
JudgeUrl: TypeAlias = Annotated[str | None, typer.Option(
    help="Any OpenAI-compatible server, for items with the scorer judge.", **_JUDGE)]
JudgeModel: TypeAlias = Annotated[str | None, typer.Option(help="The judge's model there.", **_JUDGE)]
JudgeKey: TypeAlias = Annotated[str | None, typer.Option(envvar="SWITCHYARD_JUDGE_KEY", **_JUDGE)]
JudgeRepeats: TypeAlias = Annotated[int, typer.Option(min=1, help="Opinions on each answer.", **_JUDGE)]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


@app.command()
def evaluate(
    version: Annotated[str, typer.Argument(metavar="TENANT/ADAPTER@VERSION", help="Such as acme/support@4.")],
    golden: Annotated[Path, typer.Option(help="The golden set, a JSONL file.")],
    metric: Metric = "auto", floor: Floor = None, baseline: BaselineName = "auto", threshold: Threshold = 0.0,
    confidence: Confidence = 0.95, slice_drop: SliceDrop = 0.05, slice_floor: SliceFloor = None,
    slice_least: SliceLeast = 10, latency: Latency = None, max_errors: MaxErrors = 0.01, repeats: Repeats = 1,
    concurrency: Concurrency = 8, temperature: Temperature = 0.0, top_p: TopP = 1.0, max_tokens: MaxTokens = 512,
    seed: Seed = 0, alone: Alone = False, fresh: Fresh = False,
    record: Annotated[bool, typer.Option(help="Keep the result in the gateway's registry.")] = True,
    url: Url = DEFAULT_URL, key: Key = None, operator_key: OperatorKey = None, state: State = STATE,
    judge_url: JudgeUrl = None, judge_model: JudgeModel = None, judge_key: JudgeKey = None,
    judge_repeats: JudgeRepeats = 3, as_json: Json = False,
) -> None:
    """Run a golden set against a version through the gateway, decide whether it may take traffic, and record that.

    Exits with 0 when it passed, 1 when it failed, 2 when it cannot be evaluated so, 3 when no gateway answers.

    Example: switchyard evaluate acme/support@4 --golden golden.jsonl --floor 0.85 --threshold 0.02
    """
    with _failures(as_json, ValueError):
        from adapters.evaluation import golden as golden_sets
        from adapters.evaluation.calls import Sampling
        from adapters.evaluation.plan import Plan, Target
        from adapters.gateway_client import Door

        plan = Plan(
            target=Target.parse(version), golden=golden_sets.read(golden), state=state / "evaluations",
            gate=_gate(metric, floor, baseline, threshold, confidence, slice_drop, slice_floor, slice_least, latency,
                       max_errors),
            sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed),
            repeats=repeats, concurrency=concurrency, alone=alone, key=key, fresh=fresh, record=record)
        judge = _judge_settings(judge_url, judge_model, judge_key, judge_repeats)
        operator_key = _operator_key(operator_key, state)
    with _failures(as_json):
        outcome = asyncio.run(_evaluate(plan, Door(url), operator_key, judge))
    _print(outcome, as_json)
    raise typer.Exit(PASSED if outcome.decision.passed else FAILED)


@app.command()
def evaluate_server(
    golden_dir: Annotated[Path, typer.Option(
        exists=True, file_okay=False, help="A folder of golden sets, <golden_set_id>.jsonl.")],
    service_key: Annotated[str, typer.Option(
        envvar="SWITCHYARD_EVALUATION_KEY", help="The key that callers must hold.")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8090,
    models_dir: Annotated[Path | None, typer.Option(
        exists=True, file_okay=False, help="The folder that a model_path must lie in. Default: digests alone.")] = None,
    adapter: Annotated[str | None, typer.Option(
        help="tenant/adapter that a model_path is a version of, unless the request says.")] = None,
    metric: Metric = "auto", floor: Floor = None, baseline: BaselineName = "auto", threshold: Threshold = 0.0,
    confidence: Confidence = 0.95, slice_drop: SliceDrop = 0.05, slice_floor: SliceFloor = None,
    slice_least: SliceLeast = 10, latency: Latency = None, max_errors: MaxErrors = 0.01, repeats: Repeats = 1,
    concurrency: Concurrency = 8, temperature: Temperature = 0.0, top_p: TopP = 1.0, max_tokens: MaxTokens = 512,
    seed: Seed = 0, url: Url = DEFAULT_URL, key: Key = None, operator_key: OperatorKey = None, state: State = STATE,
    judge_url: JudgeUrl = None, judge_model: JudgeModel = None, judge_key: JudgeKey = None,
    judge_repeats: JudgeRepeats = 3,
) -> None:
    """Serve the gate: POST /evaluate answers 200 when a version passes and 409 when it does not.

    Example: switchyard evaluate-server --golden-dir golden-sets --floor 0.85
    """
    with _failures(False, ValueError):
        from adapters.evaluation.calls import Sampling
        from adapters.evaluation.service import ServiceSettings
        from adapters.gateway_client import Door

        settings = ServiceSettings(
            key=service_key, golden_sets=golden_dir, state=state / "evaluations", door=Door(url),
            operator_key=_operator_key(operator_key, state), models=models_dir, adapter=adapter, tenant_key=key,
            gate=_gate(metric, floor, baseline, threshold, confidence, slice_drop, slice_floor, slice_least, latency,
                       max_errors),
            sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed),
            repeats=repeats, concurrency=concurrency)
        judge = _judge_settings(judge_url, judge_model, judge_key, judge_repeats)
    asyncio.run(_serve(settings, host, port, judge))


JudgeOptions: TypeAlias = "tuple[TeacherSettings, JudgeSettings] | None"


async def _evaluate(plan: "Plan", door: "Door", operator_key: str, judge: JudgeOptions) -> "Outcome":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from adapters.evaluation.evaluate import evaluate as run

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with AsyncExitStack() as stack:
        opened = await _judge(stack, judge)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("asking", total=None)
            return await run(
                plan, door, operator_key, judge=opened, say=lambda line: print(line, file=sys.stderr, flush=True),
                progress=lambda done, total: bar.update(task, completed=done, total=total))


async def _serve(settings: "ServiceSettings", host: str, port: int, judge: JudgeOptions) -> None:
    import uvicorn

    from adapters.evaluation.service import make_app

    async with AsyncExitStack() as stack:
        app = make_app(settings, await _judge(stack, judge))
        print(f"The gate answers at http://{host}:{port}/evaluate.", file=sys.stderr, flush=True)
        await uvicorn.Server(uvicorn.Config(app, host=host, port=port, access_log=False, log_level="warning")).serve()


def _judge_settings(url: str | None, model: str | None, key: str | None, repeats: int) -> JudgeOptions:
    if not url and not model:
        return None
    if not url or not model:
        raise ValueError("A judge needs both --judge-url and --judge-model.")
    from adapters.evaluation.judge import JudgeSettings
    from adapters.teacher import TeacherSettings

    return TeacherSettings(url=url, model=model, key=key), JudgeSettings(repeats=repeats)


async def _judge(stack: AsyncExitStack, options: JudgeOptions) -> "Judge | None":
    """The judge, open as long as the stack."""
    if options is None:
        return None
    from adapters.evaluation.judge import Judge
    from adapters.teacher import Teacher

    return Judge(await stack.enter_async_context(Teacher(options[0])), options[1])


def _gate(
    metric: str, floor: float | None, baseline: str, threshold: float, confidence: float, slice_drop: float,
    slice_floor: float | None, slice_least: int, latency: float | None, max_errors: float,
) -> "Gate":
    from adapters.evaluation.decide import Gate

    return Gate(metric=metric, floor=floor, baseline=_baseline(baseline), threshold=threshold,
                confidence=confidence or None, slice_drop=slice_drop, slice_floor=slice_floor, slice_least=slice_least,
                latency_p99_ms=latency, max_errors=max_errors)


def _baseline(text: str) -> "Baseline":
    match text:
        case "auto" | "stable" | "base" | "none":
            return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--baseline {text!r} is neither auto, stable, base, none nor a number.") from None


def _operator_key(given: str | None, state: Path) -> str:
    """The key that was given, else the one that a gateway on this machine keeps in its state folder."""
    if given:
        return given
    path = state / "operator.key"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"There is no operator key: {path} cannot be read ({error.strerror}). Give one with "
                         "--operator-key or SWITCHYARD_OPERATOR_KEY.") from error


def _print(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print(json.dumps({**outcome.document, "report": str(outcome.path)}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from adapters.evaluation.report import show

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    show(outcome.document, console)
    recorded = outcome.document["record"]
    verdict = "passed" if outcome.decision.passed else "failed"
    console.print(f"{outcome.document['version']['name']} {verdict}. "
                  f"{f'Recorded as {recorded}' if recorded else 'Not recorded'}; the whole report is {outcome.path}.",
                  markup=False, soft_wrap=True)


@contextmanager
def _failures(as_json: bool, *usage: type[Exception]) -> Iterator[None]:
    """Every failure that a person can act on as one sentence on stderr, with its exit code; `usage`: others that are.
    """
    from adapters.evaluation.decide import GateError
    from adapters.evaluation.golden import GoldenError
    from adapters.evaluation.journal import JournalError
    from adapters.evaluation.plan import EvaluationError
    from adapters.gateway_client import GatewayRefused, GatewayUnreachable
    from adapters.teacher import TeacherError

    try:
        yield
    except GatewayUnreachable as error:
        raise _failed(error, UNREACHABLE, as_json) from error
    except (EvaluationError, GateError, GoldenError, JournalError, GatewayRefused, TeacherError, OSError) as error:
        raise _failed(error, USAGE, as_json) from error
    except usage as error:
        raise _failed(error, USAGE, as_json) from error


def _failed(error: Exception, code: int, as_json: bool) -> typer.Exit:
    document = {"error": {"message": str(error), "code": getattr(error, "code", None)}}
    print(json.dumps(document) if as_json else f"error: {error}", file=sys.stderr)
    return typer.Exit(code)
