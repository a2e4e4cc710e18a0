"""A real local deployment under its real supervisor, and the processes of it that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import psutil
import yaml
from troupe.v1 import learner_pb2, learner_pb2_grpc, policy_pb2, policy_pb2_grpc
from troupe_client.credentials import identity
from troupe_client.processes import identify
from troupe_client.state import Deployment, ServiceState, StateFolder
from troupe_client.wiring import Folders
from troupe_contracts.access import Role
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity, assume, own
from troupe_contracts.parent import die_with_parent

START_SECONDS = 180.0
LEASE_SECONDS = 2.0
"""Shorter than the default, so that a killed orchestrator's successor need not wait long; longer than any stop below."""
POLL_SECONDS = 0.002


class Victim(Enum):
    """What is killed. This machine's engine runs inside the executor's process: there is no engine core beside it."""

    ORCHESTRATOR = "orchestrator"
    LEARNER_FRONT = "learner front"
    LEARNER_RANK = "learner rank"
    EXECUTOR = "executor"
    DESIGNER = "designer"
    SANDBOX_SERVER = "sandbox server"
    SANDBOX_ZYGOTE = "sandbox zygote"

    @property
    def service(self) -> str:
        return self.value.split()[0]


class Live:
    """A deployment that `troupe up` keeps alive."""

    def __init__(self, state: Path, supervisor: subprocess.Popen[bytes]) -> None:
        self.state = state
        self.supervisor = supervisor
        self._folder = StateFolder(state)

    def deployment(self) -> Deployment:
        deployment = self._folder.read()
        assert deployment is not None, f"the supervisor ended: {self.log()}"
        return deployment

    def service(self, name: str) -> ServiceState:
        return self.deployment().services[name]

    def identity(self, role: Role) -> Identity:
        """A role of the deployment."""
        return identity(Folders(self.state).credentials, role)

    def log(self) -> str:
        """What the supervisor said."""
        return (self.state / "up.log").read_text(errors="replace")[-4000:]

    def pid(self, victim: Victim) -> int:
        """The process now; of several zygotes the first."""
        main = self.service(victim.service).pid
        match victim:
            case Victim.LEARNER_RANK:
                return _child(main, "troupe_learner.rank")
            case Victim.SANDBOX_ZYGOTE:
                return _child(main, "inside.py")
            case _:
                return main

    async def kill(self, victim: Victim) -> None:
        """SIGKILL; returns when the process is gone, which takes a while where others use the processors.

        Raises:
            LookupError: there is no such process at this moment.
        """
        killed = identify(self.pid(victim))
        if killed is None:
            raise LookupError(victim.value)
        try:
            os.kill(killed.pid, signal.SIGKILL)
        except ProcessLookupError as gone:
            raise LookupError(victim.value) from gone
        while killed.alive():
            await asyncio.sleep(POLL_SECONDS)

    async def all_serve(self, seconds: float = START_SECONDS) -> None:
        """Returns when every service serves."""
        deadline = time.monotonic() + seconds
        while not self._serving():
            if self.supervisor.poll() is not None:
                raise AssertionError(f"the supervisor ended: {self.log()}")
            assert time.monotonic() < deadline, f"not all serve: {self.log()}"
            await asyncio.sleep(0.05)

    def _serving(self) -> bool:
        deployment = self._folder.read()
        if deployment is None or not deployment.ready:
            return False
        return all(each.serves and each.identity.alive() for each in deployment.services.values())

    async def learner(self) -> learner_pb2.LearnerInfo:
        async with connect(self.service("learner").target, own()) as channel:
            return await learner_pb2_grpc.LearnerStub(channel).GetLearner(learner_pb2.GetLearnerRequest())

    async def engine(self) -> policy_pb2.PolicyInfo:
        async with connect(self.service("executor").target, own()) as channel:
            return await policy_pb2_grpc.PolicyStub(channel).GetPolicy(policy_pb2.GetPolicyRequest())


def stop(pids: Iterable[int]) -> None:
    """Freezes processes."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def go_on(pids: Iterable[int]) -> None:
    """Lets frozen processes go on; one that was killed meanwhile is passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


@asynccontextmanager
async def live(starter: Path, state: Path, engine: Mapping[str, object] = MappingProxyType({})) -> AsyncIterator[Live]:
    """All services of the starter's profile, one torch rank, until the block ends.

    Args:
        engine: settings of the executor's engine beside the profile's.
    """
    state.mkdir(parents=True, exist_ok=True)
    profile = yaml.safe_load((starter / "profile.yaml").read_text())
    for section, key in (("executor", "model"), ("designer", "prompt")):
        profile[section][key] = str((starter / profile[section][key]).resolve())
    profile["learner"] = {"engine": "torch", "ranks": 1}
    profile["restart_limit"] = 10_000
    for section in ("executor", "designer", "learner", "sandbox", "orchestrator"):
        # The services are those that this process would import.
        profile.setdefault(section, {})["inherit"] = ["PYTHONPATH"]
    profile["executor"]["settings"] |= engine
    profile["orchestrator"].setdefault("settings", {})["lease_seconds"] = LEASE_SECONDS
    (state / "profile.yaml").write_text(yaml.safe_dump(profile))
    command = [sys.executable, "-m", "troupe_client", "up", "--state", str(state)]
    with (state / "up.log").open("wb") as log:
        # A harness that is killed itself leaves nothing behind.
        supervisor = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    deployed = Live(state, supervisor)
    try:
        await deployed.all_serve()
        # Looks at learner and engine as only the orchestrator may.
        assume(deployed.identity(Role.ORCHESTRATOR))
        yield deployed
    finally:
        supervisor.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(supervisor.wait, 20)
        except subprocess.TimeoutExpired:
            supervisor.kill()


def _child(parent: int, marker: str) -> int:
    # A parent or child may end while it is looked at.
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent).children():
            with suppress(psutil.NoSuchProcess):
                if any(marker in part for part in child.cmdline()):
                    return child.pid
    raise LookupError(f"process {parent} has no child with {marker!r} in its command line now")
