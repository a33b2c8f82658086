"""The command that makes rows through another model; `data.py` shows it as `data augment`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from adapters.commands.terminal import failed, say

_Source = Annotated[Path, typer.Argument(help="The folder that `data prepare` wrote.", exists=True, file_okay=False)]
_Out = Annotated[Path, typer.Option(help="The folder to write, or to go on in: it keeps a journal of all answers.")]
_Url = Annotated[str, typer.Option(help="The teacher's base URL; a gateway's is http://HOST:PORT/v1.")]
_Model = Annotated[str, typer.Option(help="The teacher's model; at a gateway, a base model or an adapter.")]
_Key = Annotated[str | None, typer.Option(envvar="SWITCHYARD_TEACHER_KEY", help="The teacher's API key.")]
_Balance = Annotated[float, typer.Option(help="Bring each class up to this share of the largest one.")]
_Hard = Annotated[float, typer.Option(help="The share of these rows that looks like another class.")]
_Edge = Annotated[float, typer.Option(help="Edge cases of each class, as a share of its rows.")]
_Paraphrases = Annotated[float, typer.Option(help="More paraphrases of each class, as a share of its rows.")]
_PerSource = Annotated[int, typer.Option(help="The most rows of a kind from one row.")]
_PerCall = Annotated[int, typer.Option(help="The texts to ask for at once.")]
_Verify = Annotated[bool, typer.Option(help="Have hard negatives and edge cases sorted again, and reject misfits.")]
_Prompts = Annotated[Path | None, typer.Option(
    help="A folder with prompts of your own: paraphrase.md, hard_negative.md, edge_case.md, sort.md.",
    exists=True, file_okay=False)]
_Structured = Annotated[bool, typer.Option(help="Ask the server to keep to a JSON schema.")]
_Temperature = Annotated[float, typer.Option(help="The temperature of new texts.")]
_MaxTokens = Annotated[int, typer.Option(help="The longest reply, in tokens.")]
_Seed = Annotated[int, typer.Option(help="Equal seeds choose equal rows.")]
_Concurrency = Annotated[int, typer.Option(help="Calls at once.")]
_Attempts = Annotated[int, typer.Option(help="How often a call is tried.")]
_Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.")]
_Reasoning = Annotated[bool, typer.Option(
    "--reasoning", help="The model takes max_completion_tokens and no temperature, as OpenAI's thinking ones do.")]
_PromptPrice = Annotated[float, typer.Option(help="The price of a million tokens read.")]
_CompletionPrice = Annotated[float, typer.Option(help="The price of a million tokens written.")]
_MaxCost = Annotated[float | None, typer.Option("--budget", help="Stop before more money than this is spent.")]
_BudgetTokens = Annotated[int | None, typer.Option(help="Stop before more tokens than this are used.")]


def augment(
    source: _Source, out: _Out, url: _Url, model: _Model, key: _Key = None, balance: _Balance = 1.0,
    hard_negatives: _Hard = 0.5, edge_cases: _Edge = 0.05, paraphrases: _Paraphrases = 0.0,
    max_per_source: _PerSource = 8, per_call: _PerCall = 4, verify: _Verify = True, prompts: _Prompts = None,
    structured: _Structured = True, temperature: _Temperature = 0.9, max_tokens: _MaxTokens = 1024, seed: _Seed = 0,
    concurrency: _Concurrency = 8, attempts: _Attempts = 6, timeout: _Timeout = 120.0,
    reasoning: _Reasoning = False, prompt_price: _PromptPrice = 0.0, completion_price: _CompletionPrice = 0.0,
    budget: _MaxCost = None, budget_tokens: _BudgetTokens = None,
) -> None:
    """Make hard negatives, paraphrases and edge cases for the classes that lack rows, through another model.

    What was stopped, or killed, goes on with the same command: no answer is paid for twice.

    Example: python -m adapters data augment prepared --out augmented --url http://127.0.0.1:8080/v1 --model base
    """
    from adapters.augment import AugmentSettings, JournalError
    from adapters.augment import augment as run
    from adapters.data import DataError
    from adapters.teacher import Budget, TeacherError, TeacherSettings

    try:
        settings = AugmentSettings(
            balance=balance, hard_negatives=hard_negatives, edge_cases=edge_cases, paraphrases=paraphrases,
            max_per_source=max_per_source, per_call=per_call, verify=verify, prompts=prompts, structured=structured,
            temperature=temperature, max_tokens=max_tokens, seed=seed)
        teacher = TeacherSettings(
            url=url, model=model, key=key, concurrency=concurrency, attempts=attempts, timeout=timeout,
            reasoning=reasoning, prompt_price=prompt_price, completion_price=completion_price)
        done = asyncio.run(run(source, out, teacher, settings, budget=Budget(budget_tokens, budget), report=say))
    except (ValueError, TeacherError, JournalError, DataError, OSError) as error:
        raise failed(error) from error
    say(f"done: {done.train}")
