"""The build of the sandbox whose layers a test can switch off, as a package folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import troupe_sandbox

CRATE = Path(__file__).resolve().parents[5] / "services" / "sandbox_rs"
BUILD = ("cargo", "build", "--lib", "--quiet", "--locked", "--profile", "weakened")
FEATURES = ("--features", "extension-module,weakened")
VARIABLE = "SANDBOX_WITHOUT_LAYERS"


def build(folder: Path) -> Path:
    """Compiles what is not compiled yet and returns a folder for PYTHONPATH. Cargo waits for another that builds."""
    subprocess.run([*BUILD, *FEATURES], cwd=CRATE, check=True, env={**os.environ, "PYO3_PYTHON": sys.executable})
    package = folder / "troupe_sandbox"
    shutil.copytree(Path(troupe_sandbox.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(CRATE / "target" / "weakened" / "lib_native.so", package / "_native.abi3.so")
    return folder


def environment(package_folder: Path, off: tuple[str, ...]) -> dict[str, str]:
    """What a process needs to load that build with these layers switched off."""
    return {"PYTHONPATH": str(package_folder), VARIABLE: ",".join(off)}
