"""An executor listens where it was told to, and its engine's process group where nobody else can reach it."""

import subprocess
import sys

import pytest

PREPARED = """
import os
from troupe_inference.engines import vllm_environment
vllm_environment.prepare(threads=1, binding="nobind", local_model=True)
print(os.environ["GLOO_SOCKET_IFNAME"], os.environ["VLLM_HOST_IP"])
"""


async def test_an_executor_on_loopback_listens_nowhere_else(executors, listening) -> None:
    for executor in executors.values():
        assert listening(executor.pid) == set()


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ({}, "lo 127.0.0.1"),
        ({"GLOO_SOCKET_IFNAME": "eth7", "VLLM_HOST_IP": "192.0.2.7"}, "eth7 192.0.2.7"),
    ],
    ids=["of itself", "as told"],
)
def test_an_engine_meets_itself_on_loopback_unless_it_is_told_otherwise(told: dict[str, str], taken: str) -> None:
    command = [sys.executable, "-c", PREPARED]
    said = subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == taken
