"""How every command speaks: a line at a time, errors as one sentence, and libraries kept quiet."""

import logging
import os
import sys

import typer


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def failed(error: Exception) -> typer.Exit:
    """Say what went wrong and what to do; raise what this returns."""
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)


def settle() -> None:
    """Leave the terminal to our own lines, and the other cores to others. Call it before torch is imported.

    One thread by default, like torchrun: a tiny model gains nothing from more, and loses tenfold on shared cores.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
