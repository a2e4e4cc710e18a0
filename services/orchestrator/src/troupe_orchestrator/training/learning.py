"""The learners of one run: what they have applied, and the one thing at a time that `protocol.catch_up` asks of them.

What is sealed is read from the store once and then kept up: this orchestrator is the only one that writes it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from troupe.v1 import common_pb2, learner_pb2
from troupe_contracts.errors import describe

from troupe_orchestrator.store.batches import BatchRecord, get_batch, sealed_digests
from troupe_orchestrator.store.checkpoints import list_checkpoints
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.training.batch import TrainingSequence, read_batch
from troupe_orchestrator.training.initial_weights import check_initial_weights
from troupe_orchestrator.training.learner import (
    CheckpointUnreadableError,
    ContradictionError,
    LearnerDiskFullError,
    LearnerError,
)
from troupe_orchestrator.training.policies import Policy
from troupe_orchestrator.training.protocol import Apply, Bind, CatchUp, LearnerView, Refuse, Restore, Saved

logger = structlog.get_logger()

_READY_SECONDS = 300.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Applied:
    """An update as the learner applied it."""

    result: learner_pb2.TrainStepResult
    sequences: tuple[TrainingSequence, ...]
    seconds: float


class Learning:
    """The learners' side of one run."""

    def __init__(self, database: Database, run_id: str) -> None:
        self._database = database
        self._run_id = run_id
        self._unreadable: set[str] = set()
        """URIs of checkpoints that a learner could not read."""
        self._sealed: dict[str, tuple[str, ...]] = {}
        self._applied: dict[str, tuple[str, ...]] = {}

    async def sealed(self, policy_id: str) -> tuple[str, ...]:
        """Digests of a policy's sealed updates, from the first on."""
        # What is sealed stays sealed: only what came since is asked for.
        known = self._sealed.get(policy_id, ())
        self._sealed[policy_id] = known + await sealed_digests(self._database, self._run_id, policy_id, len(known))
        return self._sealed[policy_id]

    async def saved(self, policy_id: str) -> tuple[Saved, ...]:
        """The policy's checkpoints on record, but for those that its learner could not read. Where it could read none, all
        of them: one has to come back.
        """
        recorded = tuple(
            Saved(manifest[policy_id]["update"], manifest[policy_id]["uri"])
            for _, manifest in await list_checkpoints(self._database, self._run_id)
        )
        return tuple(each for each in recorded if each.uri not in self._unreadable) or recorded

    async def version(self, policy: Policy) -> common_pb2.PolicyVersion:
        """Of the policy's weights after all that is sealed.

        Raises:
            LearnerError: its learner does not have them now, or does not answer.
        """
        state = await self.look(policy)
        if self.view(policy, state) != LearnerView(self._run_id, await self.sealed(policy.policy_id)):
            raise LearnerError(f"the learner of policy {policy.policy_id} was put back to update {state.applied_step}")
        return state.version

    async def look(self, policy: Policy) -> learner_pb2.LearnerInfo:
        """The learner's state once its gang can work. Waits for one that is starting, and for the end of what another
        orchestrator began, however long that takes; not for one that does not answer.

        Raises:
            LearnerError: it does not answer, or does not get ready.
            LearnerDiskFullError: its ranks cannot be started before somebody makes room.
            OperationStalledError: what it does tells of no progress.
        """
        give_up = time.monotonic() + _READY_SECONDS
        while True:
            try:
                state = await self._asked(policy)
                if state.operation:
                    await policy.learner.settled(state.operation)
                    give_up = time.monotonic() + _READY_SECONDS
                    continue
            except grpc.RpcError as error:
                raise LearnerError(f"the learner of policy {policy.policy_id}: {describe(error)}") from error
            if state.state == learner_pb2.GANG_STATE_READY:
                return state
            if state.state == learner_pb2.GANG_STATE_DISK_FULL:
                raise LearnerDiskFullError(f"the learner of policy {policy.policy_id}: {state.detail}")
            if state.state == learner_pb2.GANG_STATE_FAILED or time.monotonic() > give_up:
                name = learner_pb2.GangState.Name(state.state)
                raise LearnerError(f"the learner of policy {policy.policy_id} is {name}: {state.detail}")
            await asyncio.sleep(_POLL_SECONDS)

    def view(self, policy: Policy, state: learner_pb2.LearnerInfo) -> LearnerView:
        """What a learner said at the last look, for the protocol."""
        return LearnerView(state.run_id, self._applied[policy.policy_id])

    async def _asked(self, policy: Policy) -> learner_pb2.LearnerInfo:
        """The learner's state. What it has applied is asked for from the last one on that is known: where that is no longer
        what it was, the learner has another history.
        """
        known = self._applied.get(policy.policy_id, ())
        kept = max(0, len(known) - 1)
        state = await policy.learner.get(kept)
        applied = digests_of(state)
        if known and applied[:1] != known[kept:]:
            kept, state = 0, await policy.learner.get()
            applied = digests_of(state)
        if applied != known[kept:] or policy.policy_id not in self._applied:
            self._applied[policy.policy_id] = known[:kept] + applied
        return state

    async def do(self, policy: Policy, action: CatchUp) -> Applied | None:
        """Do what a learner needs next; what it applied, if it was that.

        Raises:
            LearnerError: it could not.
            ContradictionError: what it has applied is not what is sealed.
            OtherWeightsError: it is to begin at its initial weights, which are not those that the run began with.
            BatchCollectedError: the batch to apply is no longer there.
        """
        logger.info("learner", policy=policy.policy_id, action=action)
        match action:
            case Bind(""):
                await check_initial_weights(self._database, self._run_id, policy)
                await policy.learner.bind(self._database.fence, self._run_id, "")
            case Bind(uri):
                with self._noting(uri):
                    await policy.learner.bind(self._database.fence, self._run_id, uri)
            case Restore(saved):
                with self._noting(saved.uri):
                    await policy.learner.restore(self._database.fence, saved.uri)
            case Apply(update):
                return await self._apply(policy, update)
            case Refuse(reason):
                raise ContradictionError(f"the learner of policy {policy.policy_id}: {reason}")
        return None

    async def result(self, policy: Policy, batch: BatchRecord) -> Applied:
        """What a learner that has applied a batch says of it, asked again."""
        return await self._apply(policy, batch.update)

    @contextmanager
    def _noting(self, uri: str) -> Iterator[None]:
        """A checkpoint that cannot be read is not tried again while there is another one."""
        try:
            yield
        except CheckpointUnreadableError:
            self._unreadable.add(uri)
            raise

    async def _apply(self, policy: Policy, update: int) -> Applied:
        batch = await get_batch(self._database, self._run_id, policy.policy_id, update)
        assert batch is not None, f"update {update} of policy {policy.policy_id} is not sealed"
        sequences = await asyncio.to_thread(read_batch, Path(batch.file))
        begun = time.perf_counter()
        result = await policy.learner.train(
            self._database.fence,
            self._run_id,
            batch.update,
            bytes.fromhex(batch.digest),
            sequences,
            batch.optimization,
        )
        return Applied(result, tuple(sequences), time.perf_counter() - begun)


def digests_of(state: learner_pb2.LearnerInfo) -> tuple[str, ...]:
    """Of the applied steps that an answer holds, in order; hex."""
    return tuple(step.digest.hex() for step in state.applied_steps)
