"""The state file tells a living deployment from a stale one, and the folder has one supervisor."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from troupe_client.processes import Identity, identify
from troupe_client.state import AlreadyRunningError, Deployment, ServiceState, StateFolder


def deployment(pid: int = 1, ticks: int = 2) -> Deployment:
    me = identify(os.getpid())
    assert me is not None
    return Deployment(me, tag="t", profile="p", services={"executor": ServiceState(pid, ticks, "log", target="h:1")})


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.read() is None
    state.write(deployment())
    assert state.read() == deployment()
    state.clear()
    assert state.read() is None


def test_a_second_supervisor_is_refused_naming_folder_and_holder(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with state.held():
        state.write(deployment())
        assert state.is_held()
        with pytest.raises(AlreadyRunningError) as caught, StateFolder(tmp_path / "state").held():
            pass
    assert str(tmp_path / "state") in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert not state.is_held()


def test_a_file_from_before_the_last_boot_is_ignored(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.write(deployment())
    file = tmp_path / "local.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot_id": "another"}))
    assert state.read() is None


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    assert identity is not None
    assert identity.alive()
    assert not Identity(child.pid, identity.start_ticks - 1).alive()
    child.communicate(b"\n")
    assert not identity.alive()


def test_an_ended_process_that_nobody_has_waited_for_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    identity = Identity(child.pid, 0)
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    assert not identity.alive()
    child.wait()


def test_a_process_whose_main_thread_has_ended_is_alive_while_another_thread_runs() -> None:
    program = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.readline).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.3)
    assert identify(child.pid) is not None
    child.kill()
    child.communicate()
    assert identify(child.pid) is None
