"""What the way in which code ends means for the exit status of its process, from which the sandbox takes its verdict.

The sandbox loads this file alone for programs that are no workflow scripts: it needs nothing of the library.
"""

import sys
from opcode import opmap

EXIT_FAILED = 1
# By this status the sandbox tells a memory limit from other failures (docs/script-pipe.md).
EXIT_OUT_OF_MEMORY = 113


def exit_status(exit_: SystemExit) -> int:
    """The status that Python would end with."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        # One that no C long holds is -1 to it.
        return exit_.code & 0xFF if -(1 << 63) <= exit_.code < 1 << 63 else 0xFF
    print(exit_.code, file=sys.stderr)
    return EXIT_FAILED


def was_refused_memory(error: BaseException) -> bool:
    """Whether the allocator raised it: a MemoryError that a `raise` statement made says nothing about memory."""
    if not isinstance(error, MemoryError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    try:
        return trace is None or trace.tb_frame.f_code.co_code[trace.tb_lasti] != opmap["RAISE_VARARGS"]
    except MemoryError:
        return True
