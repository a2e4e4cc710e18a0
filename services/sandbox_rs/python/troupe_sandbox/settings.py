"""Collects what the native side needs to know of this installation: interpreter, library, module, folders."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from troupe_workflow import LIBRARY

from . import _native

INSIDE_SCRIPT = Path(__file__).with_name("inside.py")


def base_interpreter() -> Path:
    """The interpreter behind a virtual environment: sandboxed programs see its standard library and nothing else."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def collect(
    profile: str,
    require_layers: Sequence[str],
    workflow_slots: int,
    test_slots: int,
    work_root: Path | None = None,
    python: Path | None = None,
    library: Path = LIBRARY,
) -> str:
    """The settings as JSON. Starts the interpreter once, to ask which files it reads."""
    python = (python or base_interpreter()).resolve()
    native_module = Path(_native.__file__).resolve()
    library = library.resolve()
    command: list[str | Path] = [python, "-I", "-S", INSIDE_SCRIPT, native_module, "describe", library]
    described = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env={}).stdout)
    return json.dumps(
        {
            "profile": profile,
            "require_layers": list(require_layers),
            "workflow_slots": workflow_slots,
            "test_slots": test_slots,
            "python": str(python),
            "inside_script": str(INSIDE_SCRIPT.resolve()),
            "native_module": str(native_module),
            "workflow_library": str(library),
            "readable": described["readable"],
            "python_version": described["version"],
            "work_root": str((work_root or Path(tempfile.gettempdir())).resolve()),
        }
    )
