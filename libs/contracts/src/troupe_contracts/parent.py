"""Ends this process when the one that started it ends, however that ends.

Linux only (PR_SET_PDEATHSIG). The signal comes when the *thread* that started this process ends, so a
supervisor starts its children from a thread that lives as long as it does.
"""

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(signum: signal.Signals = signal.SIGTERM) -> None:
    """Asks the kernel to send `signum` to this process when its parent is gone.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
