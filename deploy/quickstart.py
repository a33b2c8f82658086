"""The quickstart's front: makes the environments, then hands over to the job in the gateway's own python.

Standard library only: this runs before anything is installed.
"""

import argparse
import os
import sys
import time

import environments
from environments import ROOT, StepFailed


def main() -> int:
    """Make what is missing, then become deploy/quickstart_job.py; 1 when a step failed."""
    parser = argparse.ArgumentParser(prog="deploy/quickstart", description=(
        "Two tenants, two adapters trained here, one vLLM: all is made, started and tried. Ctrl-C stops everything."))
    parser.add_argument("--base-model", metavar="ID_OR_PATH",
                        help="a Hugging Face id or a folder; default: a tiny Llama made here, so nothing is downloaded")
    parser.add_argument("--port", type=int, default=8080, help="the gateway's port (default 8080)")
    parser.add_argument("--state", default=str(environments.HOME / "state"),
                        help="state folder (default .switchyard/state)")
    parser.add_argument("--check", action="store_true", help="verify the answers, stop everything and exit")
    given = parser.parse_args()
    started = time.time()
    try:
        with environments.only_one():
            python = environments.gateway_environment(dev=False)
            engine = environments.engine_environment()
    except StepFailed as failure:
        environments.report(failure)
        return 1
    except KeyboardInterrupt:
        return 130
    state = os.path.abspath(given.state)
    if given.base_model and os.path.isdir(given.base_model):
        given.base_model = os.path.abspath(given.base_model)
    os.chdir(ROOT)
    os.execv(python, [
        str(python), str(ROOT / "deploy/quickstart_job.py"), "--engine-python", str(engine), "--state", state,
        "--port", str(given.port), "--started", str(started), *(["--check"] if given.check else []),
        *(["--base-model", given.base_model] if given.base_model else [])])


if __name__ == "__main__":
    sys.exit(main())
