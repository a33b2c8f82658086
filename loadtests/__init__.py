"""Benchmarks, each a command: `python -m loadtests.overhead`. Figures are ratios against something run beside it."""
