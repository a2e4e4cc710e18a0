"""Collects what the native side needs to know of this installation: interpreter, library, module, folders."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from troupe_workflow import LIBRARY

from . import _native

PROGRAMS_PER_ZYGOTE = 5000
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
    preload: Sequence[str] = (),
    programs_per_zygote: int = PROGRAMS_PER_ZYGOTE,
) -> str:
    """The settings as JSON. Starts the interpreter once or twice, to ask which files it reads and where modules lie.

    `preload` names further modules for tests and tools, such as numpy: of this environment, or of `python` where that is
    given. One that cannot be imported is a ValueError, and so are a `python` that is none and a missing `work_root`.
    """
    work_root = work_root or Path(tempfile.gettempdir())
    if not work_root.is_dir():
        raise ValueError(
            f"{work_root} is no folder for work directories: make it, or name another (--work-dir, work_root)"
        )
    native_module = Path(_native.__file__).resolve()
    library = library.resolve()
    with_site = python or Path(sys.executable)
    python = (python or base_interpreter()).resolve()

    def describe(interpreter: Path, options: Sequence[str], modules: Sequence[str]) -> dict[str, Any]:
        asked = json.dumps({"modules": list(modules), "search_path": []})
        command: list[str | Path] = [interpreter, *options, INSIDE_SCRIPT, native_module, "describe", library, asked]
        try:
            done = subprocess.run(command, capture_output=True, check=True, text=True, env={})
            return cast(dict[str, Any], json.loads(done.stdout))
        except (OSError, subprocess.CalledProcessError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{interpreter} cannot run programs ({error}): name a Python of 3.11 or later (--python, python)"
            ) from error

    described = describe(python, ["-I", "-S"], ())
    search_path: list[str] = []
    if preload:
        found = describe(with_site, ["-I"], preload)
        for name, error in found["missing"].items():
            raise ValueError(
                f"module {name!r} cannot be preloaded ({error}): install it where {with_site} finds it, "
                "or leave it out of the preloaded modules"
            )
        search_path = found["search_path"]
        described["readable"] = sorted({*described["readable"], *found["readable"]})
    return json.dumps(
        {
            "profile": profile,
            "require_layers": list(require_layers),
            "workflow_slots": workflow_slots,
            "test_slots": test_slots,
            "programs_per_zygote": programs_per_zygote,
            "python": str(python),
            "inside_script": str(INSIDE_SCRIPT.resolve()),
            "native_module": str(native_module),
            "workflow_library": str(library),
            "readable": described["readable"],
            "preload": json.dumps({"modules": list(preload), "search_path": search_path}),
            "python_version": described["version"],
            "work_root": str(work_root.resolve()),
        }
    )
