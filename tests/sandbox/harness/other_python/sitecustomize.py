"""In PYTHONPATH, this makes SANDBOX_PYTHON the interpreter of sandboxed programs wherever none is named."""

import os
import sys

sys._base_executable = os.environ["SANDBOX_PYTHON"]  # type: ignore[attr-defined]
