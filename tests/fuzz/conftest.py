"""All services, real and in processes of their own; the engine is the example plug-in that needs no weights in memory, and
for the orchestrator's runs one that has them (`fuzzing.scoring_engine`).

The end of the learner that agents of other nodes join is served without the rest of it (`fuzzing.gang_front`). The
orchestrator's store is PostgreSQL where that is installed, or what TROUPE_FUZZ_STORE says: postgresql or sqlite.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator" / "harness"))

from distributions import install, install_example
from fuzzing import gang_front
from fuzzing.states import States
from storage.postgres import PostgresServer, binaries

_SCORING = (Path(__file__).parent / "harness" / "fuzzing" / "scoring_engine.py").read_text()


@dataclass(frozen=True)
class Service:
    """A service that serves."""

    target: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Deployment:
    """Target and process of each service."""

    services: dict[str, Service]

    def target(self, service: str) -> str:
        return self.services[service].target

    def dead(self) -> list[str]:
        return [name for name, its in self.services.items() if its.process.poll() is not None]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """Settings of the orchestrator that say where its store is."""
    wanted, found = os.environ.get("TROUPE_FUZZ_STORE", ""), binaries()
    if wanted == "sqlite" or (not wanted and found is None):
        yield {}
        return
    assert found is not None, "PostgreSQL is not installed: `make postgres`"
    server = PostgresServer(found)
    try:
        server.start()
        yield {"TROUPE_STORE_URL": server.new_database()}
    finally:
        server.remove()


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_model, start_service, store: dict[str, str]
) -> Iterator[Deployment]:
    """All services, which know each other, in a folder of their own: what they write relative to it stays there."""
    folder = tmp_path_factory.mktemp("fuzzed")
    site = folder / "site"
    site.mkdir()
    install_example("engine", site)
    install(
        site, "fuzzed-engine", {"troupe.engines": {"scoring": "scoring_engine:start"}}, {"scoring_engine": _SCORING}
    )
    before = Path.cwd()
    os.chdir(folder)
    services: dict[str, Service] = {}
    try:
        services |= _start(folder, site, tiny_model(False), start_service, store)
        yield Deployment(services)
    finally:
        os.chdir(before)
        if "sandbox" in services:
            services["sandbox"].process.terminate()
            services["sandbox"].process.wait(30)


@pytest.fixture(scope="module")
def states(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[States]:
    """Of learner, executor and orchestrator, in which good requests succeed."""
    made = States(deployment.target, tmp_path_factory.mktemp("states"))
    yield made
    made.close()


def _start_sandbox(folder: Path) -> Service:
    ready = folder / "sandbox.json"
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command += ["--work-dir", str(folder), "--workflow-slots", "16", "--test-slots", "2", "--drain-seconds", "1"]
    # Without seed and number of the fuzzing, which the sandbox would refuse as settings that it does not know.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TROUPE_")}
    process = subprocess.Popen([*command, "--die-with-parent", "--log", "error"], env=environment)
    give_up = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, "the sandbox did not start"
        assert time.monotonic() < give_up, "the sandbox does not serve"
        time.sleep(0.02)
    return Service(json.loads(ready.read_text())["target"], process)


def _start(folder: Path, site: Path, model: Path, start_service, store: dict[str, str]) -> dict[str, Service]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))

    def learner(name: str) -> Callable[[], Service]:
        settings = {"TROUPE_MODEL": str(model), "TROUPE_POLICY_ID": "p1", "TROUPE_WORK_DIR": str(folder / name)}
        return start_service(name, ["-m", "troupe_learner"], settings)

    def executor(name: str, engine: str) -> Callable[[], Service]:
        settings = {
            "PYTHONPATH": path,
            "TROUPE_ENGINE": engine,
            "TROUPE_MODEL": str(model),
            "TROUPE_LINEAGE": "start",
            "TROUPE_POLICY_ID": "p1",
            "TROUPE_REPLICA_ID": "executor-0",
            "TROUPE_CONTEXT_LENGTH": "256",
        }
        return start_service(name, ["-m", "troupe_executor"], settings)

    # Those that are fuzzed belong to the store that the fuzzed fences name: the orchestrator's runs have their own.
    waiting = {
        **{name: learner(name) for name in ("learner", "runs_learner")},
        "executor": executor("executor", "uniform"),
        "runs_executor": executor("runs_executor", "scoring"),
        "gang": start_service(
            "gang",
            [gang_front.__file__],
            {
                "TROUPE_MODEL": str(model),
                "TROUPE_WORK_DIR": str(folder / "gang"),
                "TROUPE_NODES": "2",
                "TROUPE_GANG_ADDRESS": f"127.0.0.1:{_free_port()}",
            },
        ),
    }
    services = {"sandbox": _start_sandbox(folder), **{name: wait() for name, wait in waiting.items()}}
    services["designer"] = start_service(
        "designer",
        ["-m", "troupe_designer"],
        {
            "TROUPE_REMOTE_TARGET": services["runs_executor"].target,
            "TROUPE_POLICY_ID": "p1",
            "TROUPE_REPLICA_ID": "designer-0",
        },
    )()
    services["orchestrator"] = start_service(
        "orchestrator",
        ["-m", "troupe_orchestrator"],
        {
            "TROUPE_LEARNER": services["runs_learner"].target,
            "TROUPE_EXECUTOR": services["runs_executor"].target,
            "TROUPE_DESIGNER": services["designer"].target,
            "TROUPE_SANDBOX": services["sandbox"].target,
            "TROUPE_DATA_DIR": str(folder / "data"),
            **store,
        },
    )()
    return services


def _free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
