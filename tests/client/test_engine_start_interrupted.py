"""Ctrl-C while the real engine, learner and sandbox start: nothing of them is left."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from standin.deployment import Command, left_of, until
from troupe_client.processes import SHARED_MEMORY, members

Start = Callable[..., Command]


@pytest.mark.parametrize("moment", ["importing", pytest.param("loading", marks=pytest.mark.long)])
def test_ctrl_c_while_vllm_starts_leaves_no_process_no_port_and_no_shared_memory(
    tmp_path: Path, start_command: Start, tiny_model: Callable[[bool], Path], moment: str
) -> None:
    profile = {
        "executor": {"model": str(tiny_model(False)), "policy_id": "tiny", "context_length": 256},
        "designer": {"policy_id": "tiny"},
        "learner": {"engine": "torch"},
        "sandbox": {"workflow_slots": 2, "test_slots": 1},
    }
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    before = set(SHARED_MEMORY.iterdir())
    up = start_command("up", "--profile", tmp_path / "profile.yaml", state=tmp_path / "state")
    deployment = up.deployment(lambda deployment: len(deployment.services) >= 3)
    log = Path(deployment.services["executor"].log)
    if moment == "loading":
        until(lambda: "vllm" in log.read_text().lower(), seconds=60)
    time.sleep(1)
    processes = members(deployment.processes(), deployment.tag)
    seconds, errors = up.end(signal.SIGINT)
    assert up.process.returncode == 130, errors
    assert seconds < 5
    assert left_of(deployment) == []
    assert [process for process in processes if process.alive()] == []
    assert set(SHARED_MEMORY.iterdir()) <= before
