"""Learners as real processes, and batches to train them on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc
from troupe_contracts import batch as contract
from troupe_contracts.channel import connect

# Fewer than the tiny model has: its byte alphabet alone is this large.
VOCABULARY = 256
_START_SECONDS = 240
_STATES_AT_WORK = (learner_pb2.GANG_STATE_RESTARTING, learner_pb2.GANG_STATE_TRAINING)


def make_sequences(count: int, seed: int = 0, longest: int = 40) -> list[learner_pb2.Sequence]:
    """Random tokens, about half of them trained, normalised as `token_mean` does."""
    random = np.random.default_rng(seed)
    sequences = []
    for index in range(count):
        length = int(random.integers(8, longest + 1))
        weights = (random.random(length) < 0.5).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        sequences.append(
            learner_pb2.Sequence(
                id=f"conversation-{index}",
                token_ids=random.integers(0, VOCABULARY, length).tolist(),
                weights=weights.tolist(),
                advantages=[float(random.normal())] * length,
                behaviour_log_probs=(weights * -float(np.log(VOCABULARY))).tolist(),
            )
        )
    total = sum(sum(each.weights) for each in sequences)
    for each in sequences:
        each.weights[:] = [weight / total for weight in each.weights]
    return sequences


@dataclass
class Client:
    """Calls of one run to one learner; every request can be bent by keyword."""

    # A string: the class exists in the stubs only.
    stub: "learner_pb2_grpc.LearnerAsyncStub"
    run_id: str = "run"
    policy_id: str = "policy"
    token: int = 1

    @property
    def fence(self) -> common_pb2.Fence:
        return common_pb2.Fence(store_id="store", token=self.token)

    async def submit(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.SubmitBatchResponse:
        fields: dict[str, object] = {
            "fence": self.fence,
            "run_id": self.run_id,
            "policy_id": self.policy_id,
            "step": step,
            "digest": contract.digest(sequences),
            "sequence_count": len(sequences),
        } | bent

        async def messages() -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
            yield learner_pb2.SubmitBatchRequest(header=learner_pb2.BatchHeader(**fields))  # type: ignore[arg-type]
            for start in range(0, len(sequences), 7):
                chunk = learner_pb2.SequenceChunk(sequences=sequences[start : start + 7])
                yield learner_pb2.SubmitBatchRequest(chunk=chunk)

        return await self.stub.SubmitBatch(messages())

    async def start_step(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.Operation:
        optimization: dict[str, object] = {
            "learning_rate": 1e-3,
            "mini_batches": 2,
            "clip_low": 0.2,
            "clip_high": 0.28,
            "max_grad_norm": 1.0,
            "scale_by_mini_batches": True,
        } | {name: value for name, value in bent.items() if name not in ("digest", "fence", "run_id")}
        fields: dict[str, object] = {
            "fence": self.fence,
            "run_id": self.run_id,
            "digest": contract.digest(sequences),
        } | {name: value for name, value in bent.items() if name in ("digest", "fence", "run_id")}
        return await self.stub.TrainStep(
            learner_pb2.TrainStepRequest(
                policy_id=self.policy_id,
                step=step,
                optimization=learner_pb2.Optimization(**optimization),  # type: ignore[arg-type]
                **fields,  # type: ignore[arg-type]
            )
        )

    async def train(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.TrainStepResult:
        await self.submit(step, sequences)
        done = await self.finished(await self.start_step(step, sequences, **bent))
        assert not done.HasField("error"), done.error
        return done.train_step

    async def finished(self, operation: learner_pb2.Operation) -> learner_pb2.Operation:
        async for event in self.stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
            operation = event.operation
        assert operation.done
        return operation

    async def save(self, uri: str) -> learner_pb2.Operation:
        request = learner_pb2.SaveCheckpointRequest(fence=self.fence, policy_id=self.policy_id, uri=uri)
        return await self.finished(await self.stub.SaveCheckpoint(request))

    async def restore(self, uri: str) -> learner_pb2.Operation:
        request = learner_pb2.RestoreCheckpointRequest(fence=self.fence, policy_id=self.policy_id, uri=uri)
        return await self.finished(await self.stub.RestoreCheckpoint(request))

    async def get(self) -> learner_pb2.LearnerInfo:
        return await self.stub.GetLearner(learner_pb2.GetLearnerRequest())

    async def ready(self) -> learner_pb2.LearnerInfo:
        async with asyncio.timeout(_START_SECONDS):
            while (state := await self.get()).state in _STATES_AT_WORK:
                await asyncio.sleep(0.05)
        assert state.state == learner_pb2.GANG_STATE_READY, state
        return state

    async def weights(self) -> tuple[object, dict[str, bytes]]:
        """The manifest, and the bytes of each tensor."""
        manifest, found = None, dict[str, bytes]()
        request = learner_pb2.ExportWeightsRequest(policy_id=self.policy_id)
        async for response in self.stub.ExportWeights(request):
            if response.HasField("manifest"):
                manifest = response.manifest
                continue
            held = found.setdefault(response.chunk.name, b"")
            assert response.chunk.offset == len(held)
            assert len(response.chunk.data) <= 1 << 20
            found[response.chunk.name] = held + response.chunk.data
        return manifest, found


@dataclass
class Learner:
    """A learner process and its addresses."""

    process: subprocess.Popen[bytes]
    target: str
    work_dir: Path
    log: Path

    def rank_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(each) for each in children.read_text().split()]

    def client(self) -> grpc.aio.Channel:
        return connect(self.target)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


StartLearner = Callable[..., Learner]


def launch(folder: Path, model: Path, **settings: object) -> subprocess.Popen[bytes]:
    """`python -m troupe_learner` with TROUPE_ settings given as keywords; does not wait."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
    given = {
        "model": model,
        "work_dir": folder / "work",
        "ready_file": folder / "ready.json",
        "die_with_parent": "true",
        "log_format": "console",
    } | settings
    environment |= {f"TROUPE_{name.upper()}": str(value) for name, value in given.items()}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "troupe_learner"], env=environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def start_learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartLearner]:
    """`start_learner(model, **settings)`: a learner that is ready; ended with the module."""
    started: list[subprocess.Popen[bytes]] = []

    def start(model: Path, **settings: object) -> Learner:
        folder = tmp_path_factory.mktemp("learner")
        process = launch(folder, model, **settings)
        started.append(process)
        ready = folder / "ready.json"
        give_up = time.monotonic() + _START_SECONDS
        while not ready.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up, (folder / "log").read_text()
            time.sleep(0.05)
        target = json.loads(ready.read_text())["target"]
        return Learner(process, target, folder / "work", folder / "log")

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(30)


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., list[learner_pb2.Sequence]]:
    return make_sequences


@pytest.fixture
def sequences(batch_of: Callable[..., list[learner_pb2.Sequence]]) -> Callable[..., list[learner_pb2.Sequence]]:
    return batch_of


@pytest.fixture
def launch_learner() -> Callable[..., subprocess.Popen[bytes]]:
    return launch


@pytest.fixture
def client_of() -> Callable[..., Client]:
    """`client_of(channel)`: calls over that channel."""
    return lambda channel, **fields: Client(learner_pb2_grpc.LearnerStub(channel), **fields)
