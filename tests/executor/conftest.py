"""Real executors as processes, one per kind of embeddings, and a stub of the learner that they pull weights from."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import torch
from safetensors import safe_open
from transformers import Qwen3ForCausalLM
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.wire import SERVER_OPTIONS

CONTEXT = 256
POLICY = "tiny"
FENCE = common_pb2.Fence(store_id="store", token=1)


@dataclass(frozen=True)
class Executor:
    """A running executor, the stub to call it, and what passed its engine's boundary."""

    tied: bool
    target: str
    stub: policy_pb2_grpc.PolicyStub
    record: Path
    pid: int

    def recorded(self) -> list[dict]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def executors(tiny_model, start_service, tmp_path_factory) -> AsyncIterator[dict[bool, Executor]]:
    """Executors of the untied and of the tied model."""
    folder = tmp_path_factory.mktemp("records")
    waiting = {}
    for tied in (False, True):
        settings = {
            "TROUPE_MODEL": str(tiny_model(tied)),
            "TROUPE_LINEAGE": "start",
            "TROUPE_POLICY_ID": POLICY,
            "TROUPE_REPLICA_ID": f"executor-{tied}",
            "TROUPE_CONTEXT_LENGTH": str(CONTEXT),
            "TROUPE_KV_CACHE_GIB": "0.05",
            "TROUPE_MAX_NUM_SEQS": "8",
            "TROUPE_MAX_QUEUED": "24",
        }
        script = Path(__file__).parent / "recording_executor.py"
        waiting[tied] = start_service("executor", [str(script), str(folder / str(tied))], settings)
    running: dict[bool, Executor] = {}
    channels = []
    for tied, wait in waiting.items():
        service = await asyncio.to_thread(wait)
        channels.append(connect(service.target))
        stub = policy_pb2_grpc.PolicyStub(channels[-1])
        running[tied] = Executor(tied, service.target, stub, folder / str(tied), service.process.pid)
    yield running
    for channel in channels:
        await channel.close()


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def executor(request, executors) -> Executor:
    """Each of the executors in turn."""
    return executors[request.param]


@pytest.fixture
def untied_executor(executors) -> Executor:
    return executors[False]


@pytest.fixture(scope="session")
def reference_log_probs() -> Callable[[Path, list[int]], list[float]]:
    """Log-probability of each token but the first, by transformers in float32."""
    models: dict[Path, Qwen3ForCausalLM] = {}

    def score(folder: Path, token_ids: list[int]) -> list[float]:
        if folder not in models:
            models[folder] = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = models[folder](torch.tensor([token_ids])).logits[0]
        log_probs = logits.log_softmax(-1)
        return [log_probs[position, token].item() for position, token in enumerate(token_ids[1:])]

    return score


@dataclass
class StubLearner(learner_pb2_grpc.LearnerServicer):
    """Stands in for the learner: exports the weights of a folder, and corrupts the tensor that it is told to."""

    target: str = ""
    folder: Path = Path()
    corrupted: str = ""
    version: common_pb2.PolicyVersion = field(default_factory=common_pb2.PolicyVersion)

    def manifest(self, tied: bool) -> policy_pb2.WeightManifest:
        """The manifest of the folder's true weights."""
        specs = []
        for name, content, shape, dtype in self._tensors():
            specs.append(
                policy_pb2.TensorSpec(
                    name=name,
                    shape=shape,
                    dtype=dtype,
                    sha256=hashlib.sha256(content).digest(),
                    byte_size=len(content),
                )
            )
        return policy_pb2.WeightManifest(policy_id=POLICY, version=self.version, tensors=specs, tied_embeddings=tied)

    async def ExportWeights(self, request, context):
        if request.version != self.version:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "that version is no longer current")
        for name, content, _, _ in self._tensors():
            if name == self.corrupted:
                content = bytes([content[0] ^ 1]) + content[1:]
            for offset in range(0, len(content), 10_000):
                chunk = learner_pb2.TensorChunk(name=name, offset=offset, data=content[offset : offset + 10_000])
                yield learner_pb2.ExportWeightsResponse(chunk=chunk)

    def _tensors(self):
        with safe_open(self.folder / "model.safetensors", "np") as file:
            for name in file.keys():  # noqa: SIM118
                array = file.get_tensor(name)
                yield name, array.tobytes(), array.shape, file.get_slice(name).get_dtype()


@pytest_asyncio.fixture(loop_scope="session")
async def learner() -> AsyncIterator[StubLearner]:
    """A stub learner that serves."""
    stub = StubLearner()
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    learner_pb2_grpc.add_LearnerServicer_to_server(stub, server)
    stub.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield stub
    await server.stop(None)
