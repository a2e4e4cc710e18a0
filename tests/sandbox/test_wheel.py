"""The wheel by itself: types that hold, and an empty environment in which nothing else of Troupe is installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CRATE = ROOT / "services/sandbox_rs"
DOCUMENTS = (CRATE / "README.md", ROOT / "docs/sandbox.md")
EXAMPLES = {
    "grade.py": ["right: ok", "wrong: wrong_answer", "endless: cpu_limit", "curious: policy_violation"],
    "many.py": ["sum of squares: 328350", "gave up: its process is gone"],
}
CONSUMER = """
from troupe_sandbox import AsyncSandbox, Limits, Sandbox

def grade(solution: str) -> bool:
    with Sandbox(require_layers=["seccomp"]) as sandbox:
        return sandbox.run_tests(solution, [("1", "1")], limits=Limits(cpu_seconds=1)).passed

async def call(code: str) -> str:
    async with AsyncSandbox() as sandbox:
        report = await sandbox.run_tool(code)
        return report.output
"""


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return str(done.stdout)


def test_the_stubs_say_what_the_module_is(tmp_path):
    # Run elsewhere: the project's own settings are not a stranger's.
    said = run([sys.executable, "-m", "mypy.stubtest", "troupe_sandbox._native"], cwd=tmp_path)
    assert "Success" in said


def test_a_strict_users_program_type_checks(tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    run([sys.executable, "-m", "mypy", "--strict", "consumer.py"], cwd=tmp_path)
    (tmp_path / "consumer.py").write_text(CONSUMER + "grade(1)\n")
    with pytest.raises(AssertionError, match="arg-type"):
        run([sys.executable, "-m", "mypy", "--strict", "consumer.py"], cwd=tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_promises(tmp_path, name):
    said = run([sys.executable, CRATE / "examples" / name], cwd=tmp_path)
    assert [promised for promised in EXAMPLES[name] if promised not in said] == []


def documented() -> list[str]:
    """The programs that the documents show, as a reader would copy them."""
    return [
        program for path in DOCUMENTS for program in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
    ]


@pytest.mark.long
def test_the_wheel_alone_is_a_sandbox(tmp_path):
    uv = shutil.which("uv", path=f"{ROOT / '.tools/bin'}{os.pathsep}{os.environ['PATH']}")
    if uv is None or shutil.which("cargo") is None:
        pytest.skip("building the wheel needs uv (`make setup` brings it) and cargo")
    wheels = tmp_path / "wheels"
    # maturin itself rather than a build in isolation, which would compile every crate anew.
    run([sys.executable, "-m", "maturin", "build", "--release", "--compatibility", "linux", "--out", wheels], cwd=CRATE)
    environment = tmp_path / "empty"
    python = environment / "bin/python"
    run([uv, "venv", "--python", sys.executable, environment])
    run([uv, "pip", "install", "--python", python, "--no-index", "--find-links", wheels, "troupe-sandbox"])
    installed = run([uv, "pip", "list", "--python", python, "--format", "freeze"])
    assert {line.partition("==")[0] for line in installed.split()} == {"troupe-sandbox"}
    for name, promises in EXAMPLES.items():
        said = run([python, "-I", CRATE / "examples" / name], cwd=tmp_path, env={"PATH": os.environ["PATH"]})
        assert [promised for promised in promises if promised not in said] == []
    shown = documented()
    assert {name for program in shown for name in re.findall(r" (?:Async)?Sandbox\(", program)} == {
        " Sandbox(",
        " AsyncSandbox(",
    }
    for program in shown:
        # It asserts and prints by itself; nothing of it may fail.
        (tmp_path / "shown.py").write_text(program)
        assert run([python, "-I", "shown.py"], cwd=tmp_path, env={"PATH": os.environ["PATH"]}).strip()
    assert "--listen" in run([python, "-I", "-m", "troupe_sandbox", "--help"])
