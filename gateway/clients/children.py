"""Starts other programs so that they end together with the process that started them, even when that one is killed."""

import os
import sys
from collections.abc import Sequence
from typing import Final

# A step between fork and exec, as a program of its own: `preexec_fn` may deadlock in a process with threads. The check
# of the parent comes after the wish, since the parent may have died before the kernel knew of it.
_LAUNCHER: Final = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM) != 0:
    sys.exit("the kernel refuses PR_SET_PDEATHSIG")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the starting process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound_to_this_process(command: Sequence[str]) -> list[str]:
    """`command`, wrapped so that it gets SIGTERM when this process dies (on Linux; elsewhere it lives on).

    To the kernel the parent is the *thread* that forks: start it from a thread that lives as long as the process, such
    as the main thread. The process keeps its id; the wrapper costs some 20 ms.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
