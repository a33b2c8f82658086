"""Runs one command and leaves nothing of it behind, whichever dies first: the command, or the guardian's parent.

vLLM's engine is a child of its API server and outlives it when that is killed, keeping its memory. The guardian adopts
whatever the command leaves orphaned and ends that too. Standard library only; Linux.

    python guardian.py PARENT_PID GRACE_SECONDS COMMAND [ARGUMENT ...]
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHAN_GRACE = 1.0  # seconds
WATCHED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


def die_with_parent(parent: int, sig: signal.Signals) -> bool:
    """Have the kernel send `sig` to this process when its parent dies; False when `parent` is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sig))
    return os.getppid() == parent


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end or until SIGTERM; its exit status (128 + n when signal n ended it)."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), list(arguments[2:])
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    if not die_with_parent(parent, signal.SIGTERM):
        return 1
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True,
                             preexec_fn=_in_child)  # noqa: PLW1509 — there is one thread
    status = _wait(child, parent, grace)
    _end_descendants()
    return 128 - status if status < 0 else status


def _in_child() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _wait(child: subprocess.Popen[bytes], parent: int, grace: float) -> int:
    """Wait for the child; once asked to end, pass that on and wait at most `grace` seconds more.

    A parent that died cannot wait for a graceful end, and whoever killed it wants everything gone.
    """
    deadline: float | None = None
    while (status := child.poll()) is None:
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            child.kill()
            return child.wait()
        got = signal.sigtimedwait(WATCHED, left)
        if got is not None and got.si_signo != signal.SIGCHLD and deadline is None:
            child.terminate()
            deadline = time.monotonic() + (grace if os.getppid() == parent else min(grace, ORPHAN_GRACE))
    return status


def _end_descendants() -> None:
    """Kill what the child left behind, and what that leaves behind, until there is nothing."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in map(int, children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
