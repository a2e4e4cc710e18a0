"""Python as a tool, for scripts to hand to their agents."""

from os import PathLike

from . import checks
from .tools import run_python

DEFAULT_TIMEOUT_SECONDS = 120


class MathEnvironment:
    """Runs python in processes of their own, outside the script; the sandbox attests the runs.

    `timeout` is in seconds of wall time. `work_dir` is accepted and has no effect: each run has a folder
    of its own.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT_SECONDS, work_dir: str | PathLike[str] | None = None) -> None:
        checks.number("MathEnvironment", "timeout", timeout, above=0)
        self.timeout = timeout

    def execute(self, code: str) -> str:
        """What the code printed, and the end of its traceback if it failed."""
        checks.text("MathEnvironment.execute", "code", code)
        return run_python(code, self.timeout)


def python_execute(code: str) -> str:
    """Runs python with the default timeout."""
    return MathEnvironment().execute(code)
