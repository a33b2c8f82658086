"""How often the verdicts catch a harmed canary by the number of requests that `REQUESTS_NEEDED` names, by simulation.

    python -m loadtests.verdicts [--runs 200]

The calls are made up as the tests of the analysis make them up, with seeds of their own; 200 runs take some minutes.
"""

import argparse

import numpy as np

from gateway.domain.analysis import REQUESTS_NEEDED, Verdict
from tests.unit.domain.test_analysis_power import decided, doubled_errors, evenly, slower

LOOKS = 25
SEED = 103
HARMS = (
    ("errors 1 % → 2 %", doubled_errors, 0.01), ("errors 2 % → 4 %", doubled_errors, 0.02),
    ("errors 5 % → 10 %", doubled_errors, 0.05),
    ("p95 × 1.3, where it is 2.3 times the median", slower, 0.5),
    ("p95 × 1.3, where it is 5 times the median", slower, 1.0),
    ("p95 × 1.3, where it is 12 times the median", slower, 1.5),
)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each harm at each weight")
    runs = parser.parse_args().runs
    for name, harmed, extent in HARMS:
        for weight, needed in REQUESTS_NEEDED[name].items():
            calls = needed * 100 // weight
            made = (harmed(np.random.default_rng([SEED, run]), calls, weight, extent) for run in range(runs))
            caught = sum(decided(one, weight, evenly(calls, LOOKS))[0] is Verdict.FAIL for one in made)
            print(f"{name}, weight {weight} %: caught by {needed:,} requests in {caught} of {runs} runs", flush=True)


if __name__ == "__main__":
    main()
