"""`python -m gateway` is the console script `switchyard`; `python -m gateway worker` is what it starts."""

import sys


def main() -> None:
    """Run the command line; exits with its status."""
    if sys.argv[1:2] == ["worker"]:
        from gateway.launch import worker

        sys.exit(worker.main(sys.argv[2:]))
    from gateway.cli.main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
