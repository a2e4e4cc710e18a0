"""A grading worker: one process that reads comparisons as JSON lines and answers each with a line.

`python -m troupe_orchestrator.grading.worker SECONDS MEMORY_BYTES PARENT_PID`. It says `{"ready": true}` once the library is
imported. Its parent limits the wall time of each comparison and kills it; here are the limits that hold when nobody
watches: CPU seconds per comparison, address space, no files, death with the parent. Whatever it cannot answer ends the
process, so that a fault is seen as one.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from troupe_contracts.plugins import PluginError

from troupe_orchestrator.grading.exits import MEMORY_EXIT

if TYPE_CHECKING:
    from troupe_orchestrator.datasets.task import MathReference

_PR_SET_PDEATHSIG = 1


def main() -> None:
    seconds, memory_bytes, parent = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The library may print; the parent reads answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _serve(sys.stdin, answers, seconds, memory_bytes)


def _serve(requests: IO[str], answers: IO[str], seconds: float, memory_bytes: int) -> None:
    # Imported here: it takes seconds, and the limits hold already.
    from troupe_orchestrator.datasets.task import MathReference
    from troupe_orchestrator.grading.math_grader import is_correct
    from troupe_orchestrator.grading.symbolic import symbolically_equal

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        answer = request["reference"]["answer"]
        reference = MathReference(
            answer=answer if isinstance(answer, str) else tuple(answer),
            multiple=request["reference"]["multiple"],
            unit=request["reference"]["unit"],
            tolerance=request["reference"]["tolerance"],
        )
        _allow_cpu(seconds)
        try:
            if request["grader"]:
                equal = _plugin_grade(request, reference)
            else:
                equal = is_correct(reference, request["answer"], symbolically_equal)
        except MemoryError:
            os._exit(MEMORY_EXIT)
        if isinstance(equal, str):
            print(json.dumps({"fault": equal}), file=answers, flush=True)
            continue
        if not equal and _peak_bytes() > 0.8 * memory_bytes:
            # The library turns errors into "not equal", running out of memory among them.
            os._exit(MEMORY_EXIT)
        print(json.dumps({"equal": equal}), file=answers, flush=True)


def _plugin_grade(request: dict[str, Any], reference: "MathReference") -> bool | str:
    """What a plug-in says; a text is why it says nothing."""
    from troupe_orchestrator.grading.graders import GRADERS

    name = request["grader"]
    try:
        grader = GRADERS.find(name)
        equal = grader(request["question"], reference.values, request["answer"])
    except PluginError as error:
        return str(error)
    # Code of others: whatever it raises says nothing about the answer.
    except Exception as error:
        return f"the grader {name!r} raised {type(error).__name__}: {error}"
    return equal if isinstance(equal, bool) else f"the grader {name!r} must return True or False, got {equal!r:.80}"


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _allow_cpu(seconds: float) -> None:
    """Lets the process use that many CPU seconds from now on; the kernel ends it after that."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(use.ru_utime + use.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _peak_bytes() -> int:
    """Peak resident memory of this program. Not getrusage's, which keeps the peak of whoever started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
