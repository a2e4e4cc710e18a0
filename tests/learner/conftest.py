"""Learners as real processes, and batches to train them on."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from troupe.v1 import learner_pb2

# The harness is a package of its own, for the tests of this folder only; certificates are made as the tests of security do.
sys.path.insert(0, str(Path(__file__).parent / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "security" / "harness"))

from learning.batches import make_sequences
from learning.client import Client
from learning.process import Learner, launch, serving

StartLearner = Callable[..., Learner]
GetLearner = Callable[[bool], Learner]
MakeSequences = Callable[..., list[learner_pb2.Sequence]]


@pytest.fixture(scope="module")
def start_learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartLearner]:
    """`start_learner(model, **settings)`: a learner that is ready; ended with the module."""
    yield from _starting(tmp_path_factory)


@pytest.fixture(scope="session")
def learners(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[bool], Path]) -> Iterator[GetLearner]:
    """`learners(tied)`: one of each kind of model for all modules, started when it is first asked for."""
    starting = _starting(tmp_path_factory)
    start = next(starting)
    yield cache(lambda tied: start(tiny_model(tied)))
    next(starting, None)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["untied", "tied"])
def shared_learner(request: pytest.FixtureRequest, learners: GetLearner) -> Learner:
    """For tests that leave it in order: they go on where the last one stopped.

    Where tied embeddings make a difference, `BOTH_MODELS` has the tests of a module run with both at all times.
    """
    return learners(request.param)


def _starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartLearner]:
    started: list[subprocess.Popen[bytes]] = []

    def start(model: Path, **settings: object) -> Learner:
        folder = tmp_path_factory.mktemp("learner")
        work_dir = Path(str(settings.get("work_dir", folder / "work")))
        process = launch(folder, model, **settings)
        started.append(process)
        return serving(process, folder, work_dir)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(30)


@pytest.fixture(scope="session")
def batch_of() -> MakeSequences:
    return make_sequences


@pytest.fixture
def sequences(batch_of: MakeSequences) -> MakeSequences:
    return batch_of


@pytest.fixture
def running(shared_learner: Learner) -> Learner:
    """The learner of a test; a module that needs another kind defines its own."""
    return shared_learner


@pytest.fixture
async def learner(running: Learner) -> AsyncIterator[Client]:
    """Calls to `running`."""
    async with running.client() as channel:
        yield Client.of(channel)
