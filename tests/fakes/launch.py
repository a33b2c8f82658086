"""`python -m tests.fakes.launch`: the launcher, by the usual settings, around the drainable app."""

import asyncio
import sys

from gateway.launch.processes import LaunchFailed
from gateway.launch.stack import Stack, forever, run
from gateway.settings import load


async def main() -> None:
    """Run until told to stop."""
    stack = Stack(load(), lambda line: print(line, flush=True), app="tests.fakes.drainable:build")
    await run(stack, forever)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except LaunchFailed as error:
        sys.exit(str(error))
