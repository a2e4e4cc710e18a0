"""Kills a process right after it has forked, by ptrace: a moment that no test would hit by chance."""

import ctypes
import os
import signal
from pathlib import Path

_ATTACH, _EVENT, _DETACH = 0x4206, 0x4201, 17
_STOP_AT_FORKS = 1 << 1 | 1 << 3
_ANY_CHILD = 0x40000000
_C = ctypes.CDLL(None, use_errno=True)
_C.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_C.ptrace.restype = ctypes.c_long


def why_not() -> str:
    """Why a process that is not dumpable cannot be traced here; empty where it can."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return "" if int(line.split()[1], 16) >> 19 & 1 else "tracing a zygote needs CAP_SYS_PTRACE"


def _ptrace(request: int, process: int, argument: object) -> None:
    if _C.ptrace(request, process, None, argument) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")


def watch_forks(process: int) -> None:
    """From now on the process stops when it has forked. Only the calling thread may go on with it."""
    _ptrace(_ATTACH, process, _STOP_AT_FORKS)


def kill_once_forked(process: int) -> int:
    """Waits for a fork and kills the process before it does anything else; the number of the child, which lives on."""
    _, status = os.waitpid(process, _ANY_CHILD)
    assert os.WIFSTOPPED(status), status
    child = ctypes.c_ulong()
    _ptrace(_EVENT, process, ctypes.byref(child))
    os.waitpid(child.value, _ANY_CHILD)
    # It stays stopped when it is not traced any more: whoever traces a process is told of its end before its parent is.
    os.kill(process, signal.SIGSTOP)
    for traced in (process, child.value):
        _ptrace(_DETACH, traced, None)
    os.kill(process, signal.SIGKILL)
    return child.value
