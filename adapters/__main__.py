"""The commands that make adapters, put together: `python -m adapters --help`."""

import typer

from adapters.commands.augment import augment
from adapters.commands.data import app as data
from adapters.commands.evaluate import evaluate, evaluate_server
from adapters.commands.make import base, demo, register
from adapters.commands.models import compare, merge
from adapters.commands.train import train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Make adapters: data, training, merging, comparing, evaluating, registering.")
data.command()(augment)
app.add_typer(data, name="data")
for command in (train, evaluate, evaluate_server, merge, compare, register, base, demo):
    app.command()(command)

if __name__ == "__main__":
    app()
