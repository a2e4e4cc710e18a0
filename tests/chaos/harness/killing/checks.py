"""What has to be so after every kill. Each check raises AssertionError with what is wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from troupe.v1 import common_pb2, learner_pb2, policy_pb2, policy_pb2_grpc, transcript_pb2
from troupe_client.profile import Profile
from troupe_client.wiring import LEARNER, Folders, launch, own_environment
from troupe_contracts.channel import connect
from troupe_contracts.identity import own
from troupe_orchestrator.store.batches import BatchRecord
from troupe_orchestrator.training.batch import read_batch
from troupe_orchestrator.training.learner import STALL_SECONDS, LearnerClient
from troupe_orchestrator.training.queue import TaskQueue, epoch_order

from killing.record import Record

REPLAY_SECONDS = 300.0
"""In which a learner that came back is given its checkpoint and the sealed batches after it, and an engine the weights."""
SPOKEN = 8
"""Replies by which the engine is compared with the learner."""
Hash = dict[str, str]
"""SHA-256 of each tensor, by name."""


class Serving(Protocol):
    """A deployment whose learner and engine can be looked at."""

    async def learner(self) -> learner_pb2.LearnerInfo: ...

    async def engine(self) -> policy_pb2.PolicyInfo: ...


class Speaker(Protocol):
    """An engine's service."""

    def Generate(self, request: policy_pb2.GenerateRequest) -> Awaitable[policy_pb2.GenerateResponse]: ...


class Scorer(Protocol):
    """A learner that tells the log-probability of each token but the first."""

    async def log_probs(
        self, sequences: Sequence[Sequence[int]], version: common_pb2.PolicyVersion
    ) -> Sequence[Any]: ...


async def applied_is_sealed(live: Serving, record: Record) -> None:
    """The learner has applied the sealed updates from the first on, each once, and nothing else; all those of committed
    steps are among them, or are again once one that came back has replayed them.
    """
    due, deadline = record.updates_committed(), time.monotonic() + REPLAY_SECONDS
    while True:
        applied = [(step.step, step.digest.hex()) for step in (await live.learner()).applied_steps]
        sealed = list(enumerate(record.sealed(), start=1))
        assert applied == sealed[: len(applied)], f"applied {applied}, sealed {sealed}"
        if len(applied) >= due:
            return
        assert time.monotonic() < deadline, f"only {len(applied)} of the {due} updates of committed steps are applied"
        await asyncio.sleep(0.1)


async def engine_comes_to_the_learner(live: Serving, record: Record, probe_bound: float) -> None:
    """While the run goes on: between a step's sync and the next one's training the engine serves what the learner has, and
    no load was further from the learner than it may be.
    """
    due, deadline = record.updates_committed(), time.monotonic() + REPLAY_SECONDS
    while True:
        learner, engine = await live.learner(), await live.engine()
        serves = engine.state == policy_pb2.UPDATE_STATE_SERVING and engine.version == learner.version
        if serves and len(learner.applied_steps) >= due:
            break
        assert time.monotonic() < deadline, f"engine {engine.version} ({engine.state}), learner {learner.version}"
        await asyncio.sleep(0.1)
    assert all(error <= probe_bound for error in record.probe_errors()), record.probe_errors()


async def engines_are_at_the_learner(live: Serving, record: Record, probe_bound: float) -> None:
    """At the end of a run: everything sealed is applied, the engine serves it, and every load was probed."""
    learner, engine = await live.learner(), await live.engine()
    assert len(learner.applied_steps) == len(record.sealed())
    assert engine.version == learner.version, f"engine {engine.version}, learner {learner.version}"
    assert engine.state == policy_pb2.UPDATE_STATE_SERVING
    assert all(error <= probe_bound for error in record.probe_errors()), record.probe_errors()
    assert record.unprobed() == [], f"no probe is on record for the updates of steps {record.unprobed()}"


async def engine_at_speaks_as(target: str, learner: Scorer, bound: float) -> None:
    """See `engine_speaks_as_the_learner`."""
    async with connect(target, own()) as channel:
        await engine_speaks_as_the_learner(policy_pb2_grpc.PolicyStub(channel), learner, bound)


async def engine_speaks_as_the_learner(executor: Speaker, learner: Scorer, bound: float) -> None:
    """What the engine says of the tokens that it samples now, the learner says of them, whatever was probed before: the mean
    difference in nats is within the bound.
    """
    said: list[list[float]] = []
    sequences: list[list[int]] = []
    for seed in range(SPOKEN):
        request = policy_pb2.GenerateRequest(
            conversation_id=f"check-{seed}",
            messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="What is 6 * 7?")],
            sampling=common_pb2.Sampling(temperature=1.0, max_tokens=32, seed=seed),
        )
        appended = (await executor.Generate(request)).appended
        prompt, reply = appended.runs[:2]
        assert reply.kind == transcript_pb2.TOKEN_RUN_KIND_GENERATED
        sequences.append(list(appended.token_ids[: prompt.length + reply.length]))
        said.append([*reply.log_probs])
    errors = [
        abs(one - float(other))
        for spoken, scored in zip(said, await learner.log_probs(sequences, reply.version), strict=True)
        for one, other in zip(spoken, scored[-len(spoken) :], strict=True)
    ]
    mean = sum(errors) / len(errors)
    assert mean <= bound, f"the engine's log-probabilities are {mean:.3f} nats from the learner's"


def tasks_are_the_epochs(record: Record, task_ids: Sequence[str], seed: int) -> None:
    """What was trained is the epoch's order from its beginning on, each task once, but for those that were put off to its
    end and the quarantined."""
    drawn = record.drawn()
    if not drawn:
        return
    # Of the same steps: the run goes on meanwhile.
    trained = record.trained_tasks(len(drawn))
    queue: TaskQueue = drawn[-1][1]
    seen = set(epoch_order(seed, queue.epoch, task_ids)[: queue.position])
    put_off = Counter(queue.postponed)
    for task in set(task_ids) - record.quarantined():
        expected = queue.epoch + (task in seen)
        assert trained[task] + put_off[task] == expected, (
            f"task {task}: trained {trained[task]} times, put off {put_off[task]}, due {expected}"
        )


async def weights(client: LearnerClient) -> Hash:
    """What a learner has now."""
    return {tensor.name: tensor.sha256.hex() for tensor in (await client.manifest()).tensors}


async def replayed(profile: Profile, batches: Sequence[BatchRecord], folder: Path) -> Hash:
    """The weights that a fresh learner has after all sealed batches, in order, from the initial weights."""
    async with _fresh_learner(profile, folder) as client:
        fence = common_pb2.Fence(store_id="replay", token=1)
        await client.bind(fence, "replay", "")
        for batch in batches:
            sequences = await asyncio.to_thread(read_batch, Path(batch.file))
            await client.train(
                fence, "replay", batch.update, bytes.fromhex(batch.digest), sequences, batch.optimization
            )
        return await weights(client)


def fingerprint(tensors: Hash) -> str:
    """One short word for all tensors."""
    return hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()[:12]


@asynccontextmanager
async def _fresh_learner(profile: Profile, folder: Path) -> AsyncIterator[LearnerClient]:
    """A learner of a profile that has seen nothing."""
    for name in ("run", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folders = Folders(folder.resolve())
    what = launch(LEARNER, profile, folders, {}, own_environment())
    with folders.log(LEARNER).open("wb") as log:
        process = subprocess.Popen(what.command, env=dict(what.environment), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not folders.ready_file(LEARNER).exists():
            assert process.poll() is None, folders.log(LEARNER).read_text()[-2000:]
            assert time.monotonic() < deadline, "the fresh learner does not serve"
            await asyncio.sleep(0.05)
        yield await LearnerClient.connect(_target(folders.ready_file(LEARNER)), STALL_SECONDS)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def _target(ready: Path) -> str:
    return str(json.loads(ready.read_text())["target"])
