"""The supervisor against stand-in services that serve, fail, hang and leave things behind."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from standin.deployment import PYTHON_PATH, Command, left_of, troupe, until, write_profile
from troupe_client.processes import Identity, identify
from troupe_client.state import Deployment

pytestmark = pytest.mark.usefixtures("shared_memory_unchanged")
Start = Callable[..., Command]


def is_ready(deployment: Deployment) -> bool:
    return deployment.ready


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_ends_a_serving_deployment_within_five_seconds_and_leaves_nothing(
    tmp_path: Path, start_command: Start, signum: signal.Signals
) -> None:
    up = start_command("up", "--profile", write_profile(tmp_path), state=tmp_path / "state")
    deployment = up.deployment(is_ready)
    assert list(deployment.services) == ["sandbox", "learner", "executor", "designer", "orchestrator"]
    seconds, _ = up.end(signum)
    assert seconds < 5
    assert up.process.returncode == 128 + signum
    assert left_of(deployment) == []
    assert up.state.read() is None


def test_a_signal_while_an_engine_hangs_in_its_start_leaves_no_worker_and_no_shared_memory(
    tmp_path: Path, start_command: Start
) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "hang"}})
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    deployment = up.deployment(lambda deployment: "executor" in deployment.services)
    log = Path(deployment.services["executor"].log)
    found = until(lambda: re.search(r"hangs with (\w+)", log.read_text()))
    segment = Path("/dev/shm") / found[1]
    workers = _children(deployment.services["executor"].pid)
    assert segment.exists()
    assert workers
    seconds, _ = up.end(signal.SIGINT)
    assert seconds < 5
    assert left_of(deployment) == []
    assert not any(worker.alive() for worker in workers)
    assert not segment.exists()


def test_a_second_signal_does_not_wait_for_the_grace(tmp_path: Path, start_command: Start) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "hang"}})
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    deployment = up.deployment(lambda deployment: "executor" in deployment.services)
    until(lambda: "hangs" in Path(deployment.services["executor"].log).read_text())
    up.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    seconds, _ = up.end(signal.SIGINT)
    assert seconds < 2
    assert left_of(deployment) == []


def test_a_service_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "exit"}})
    ended = troupe("up", "--profile", profile, "--state", tmp_path / "state")
    assert ended.returncode == 1
    assert "executor ended with exit status 3" in ended.stderr
    assert "CUDA error: no device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_setting_that_a_service_does_not_know_is_reported_in_its_words(tmp_path: Path) -> None:
    profile = write_profile(tmp_path, learner={"settings": {"rank": 2}})
    ended = troupe("up", "--profile", profile, "--state", tmp_path / "state")
    assert ended.returncode == 1
    assert "TROUPE_RANK is not known to this service: did you mean TROUPE_RANKS?" in ended.stderr


@pytest.mark.long
def test_a_service_that_never_serves_is_reported_by_name(tmp_path: Path) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "never"}}, start_seconds=4)  # type: ignore[arg-type]
    ended = troupe("up", "--profile", profile, "--state", tmp_path / "state")
    assert ended.returncode == 1
    assert "executor did not serve within 4 s" in ended.stderr


def test_a_service_that_keeps_ending_ends_the_deployment_with_the_end_of_its_log(
    tmp_path: Path, start_command: Start
) -> None:
    end = tmp_path / "end"
    environment = {"STAND_IN_ENDS_WITH": str(end), "PYTHONPATH": PYTHON_PATH}
    profile = write_profile(tmp_path, sandbox={"environment": environment}, restart_limit=2)  # type: ignore[arg-type]
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    deployment = up.deployment(is_ready)
    end.touch()
    _, errors = up.process.communicate(timeout=90)
    assert up.process.returncode == 1
    assert "sandbox ended with exit status 7: starting it again (1 of 2 times)" in errors
    assert (
        "sandbox ended with exit status 7: more than 2 times within 10 minutes (restart_limit of the profile)" in errors
    )
    assert "the end of" in errors
    assert left_of(deployment) == []


def test_a_killed_service_is_cleared_away_and_serves_again_where_it_did(tmp_path: Path, start_command: Start) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "leave behind"}})
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    before = up.deployment(is_ready).services["executor"]
    (segment,) = re.findall(r"leaves (\w+)", Path(before.log).read_text())
    workers = _children(before.pid)
    assert workers
    os.kill(before.pid, signal.SIGKILL)

    after = up.deployment(lambda now: now.services["executor"].restarts == 1 and now.services["executor"].serves)
    after_it = after.services["executor"]
    assert (after_it.target, after_it.metrics) == (before.target, before.metrics)
    assert after_it.pid != before.pid
    assert not any(worker.alive() for worker in workers)
    assert not (Path("/dev/shm") / segment).exists()
    assert segment in Path(before.log).read_text()
    assert [name for name, service in after.services.items() if service.restarts] == ["executor"]

    shown = troupe("status", "--state", tmp_path / "state")
    assert shown.returncode == 0
    assert "started again once: ended with signal SIGKILL at" in shown.stdout
    seconds, _ = up.end(signal.SIGINT)
    assert seconds < 5
    assert left_of(after) == []


@pytest.mark.long
def test_a_service_is_started_again_only_once_those_that_it_needs_serve(tmp_path: Path, start_command: Start) -> None:
    profile = write_profile(tmp_path)
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    before = up.deployment(is_ready).services
    for name in ("orchestrator", "executor"):
        os.kill(before[name].pid, signal.SIGKILL)
    after = up.deployment(
        lambda now: all(
            service.serves and service.pid != before[name].pid
            for name, service in ((name, now.services[name]) for name in ("orchestrator", "executor"))
        )
    ).services
    assert after["orchestrator"].start_ticks > after["executor"].start_ticks
    assert after["orchestrator"].target == before["orchestrator"].target


@pytest.mark.long
def test_a_signal_while_a_service_is_started_again_leaves_nothing(tmp_path: Path, start_command: Start) -> None:
    profile = write_profile(tmp_path, executor={"settings": {"misbehave": "leave behind"}})
    up = start_command("up", "--profile", profile, state=tmp_path / "state")
    deployment = up.deployment(is_ready)
    os.kill(deployment.services["executor"].pid, signal.SIGKILL)
    up.deployment(lambda now: now.services["executor"].restarts == 1)
    seconds, _ = up.end(signal.SIGINT)
    assert seconds < 5
    assert left_of(deployment) == []


def test_services_end_when_their_supervisor_is_killed_and_down_clears_what_it_left(
    tmp_path: Path, start_command: Start
) -> None:
    up = start_command("up", "--profile", write_profile(tmp_path), state=tmp_path / "state")
    deployment = up.deployment(is_ready)
    up.end(signal.SIGKILL)
    until(lambda: not left_of(deployment), seconds=5)
    assert troupe("status", "--state", tmp_path / "state").returncode == 1
    assert troupe("down", "--state", tmp_path / "state").returncode == 0
    assert up.state.read() is None


def _children(pid: int) -> list[Identity]:
    """The processes that a service has started."""
    text = "".join(task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    found = [identify(int(child)) for child in text.split()]
    return [identity for identity in found if identity is not None and identity.pid != os.getpid()]
