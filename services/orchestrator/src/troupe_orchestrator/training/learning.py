"""Has sealed batches applied by learners, once each, whatever dies meanwhile.

A learner that comes back behind the store is restored from the newest checkpoint of the run and fed the sealed batches after
it, with the options they were sealed with. One that belongs to another run is taken over: that run has ended or is paused,
since a policy is leased to one run at a time, and its own checkpoints and sealed batches bring it back. One that is further
than the store allows is refused by name.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import structlog
from troupe.v1 import learner_pb2
from troupe_contracts.errors import describe, is_infrastructure

from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import BatchRecord
from troupe_orchestrator.training.batch import TrainingSequence, read_batch
from troupe_orchestrator.training.learner import LearnerError, NonFiniteStepError
from troupe_orchestrator.training.policies import Policy

logger = structlog.get_logger()

_READY_SECONDS = 300.0
_POLL_SECONDS = 0.5
_ATTEMPTS = 3


class Learning:
    """The learners' side of one run."""

    def __init__(self, database: Database, run_id: str, bases: Mapping[str, str] | None = None) -> None:
        """The learners of `run_id`.

        Args:
            bases: policy id to the checkpoint that the run starts from; a policy without one starts from the learner's
                initial weights.
        """
        self._database = database
        self._run_id = run_id
        self._bases = bases or {}

    async def apply(
        self, policy: Policy, batch: BatchRecord, sequences: Sequence[TrainingSequence]
    ) -> learner_pb2.TrainStepResult:
        """Apply one batch; a learner that died is brought back by replay, a few times.

        Raises:
            LearnerError: it failed every time.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self.bring_to(policy, batch.update - 1)
                return await self._train(policy, batch, sequences)
            except NonFiniteStepError:
                raise
            except LearnerError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning("the learner failed, trying again", error=str(error))
        raise AssertionError("unreachable: the loop returns or raises")

    async def bring_to(self, policy: Policy, update: int) -> None:
        """Restore and replay until the learner has applied `update` updates of this run, or already one more.

        Raises:
            LearnerError: it does not get ready, cannot be taken over, or is further than what is sealed.
        """
        state = await self._ready(policy)
        applied = state.applied_step if state.run_id == self._run_id else None
        if applied is not None and applied > update + 1:
            raise LearnerError(
                f"the learner of policy {policy.policy_id} has applied {applied} updates of run {self._run_id}, "
                f"the store knows {update}; restore it from a checkpoint of this run"
            )
        if applied is None or applied < update:
            applied = await self._restore(policy, applied, update)
        for batch in await self._batches(policy.policy_id):
            if applied < batch.update <= update:
                logger.info("replaying a sealed batch", policy=policy.policy_id, update=batch.update)
                await self._train(policy, batch, await asyncio.to_thread(read_batch, Path(batch.file)))

    async def last_update(self, policy_id: str) -> int:
        """Number of the newest update of a policy that a sealed step has."""
        return max((batch.update for batch in await self._batches(policy_id)), default=0)

    async def _restore(self, policy: Policy, applied: int | None, update: int) -> int:
        """Go as near to `update` as a checkpoint leads; the number of this run's updates that the learner then has.

        Args:
            applied: updates of this run that it has now; None where it is not this run's.
        """
        for _, manifest in await store.list_checkpoints(self._database, self._run_id):
            saved = manifest[policy.policy_id]
            if (applied or 0) < saved["update"] <= update:
                return (await policy.learner.restore(self._database.fence, saved["uri"])).step
        if applied is None:
            base = self._bases.get(policy.policy_id, "")
            return (await policy.learner.bind(self._database.fence, self._run_id, base)).step
        return applied

    async def _batches(self, policy_id: str) -> list[BatchRecord]:
        """All sealed batches of a policy, in order."""
        return [
            batch
            for record in await store.list_steps(self._database, self._run_id)
            for batch in record.batches
            if batch.policy_id == policy_id
        ]

    async def _train(
        self, policy: Policy, batch: BatchRecord, sequences: Sequence[TrainingSequence]
    ) -> learner_pb2.TrainStepResult:
        return await policy.learner.train(
            self._database.fence,
            self._run_id,
            batch.update,
            bytes.fromhex(batch.digest),
            sequences,
            batch.optimization,
        )

    async def _ready(self, policy: Policy) -> learner_pb2.LearnerInfo:
        """The learner's state once its gang can work."""
        give_up = time.monotonic() + _READY_SECONDS
        while True:
            try:
                state = await policy.learner.get()
            except grpc.RpcError as error:
                if not is_infrastructure(error) or time.monotonic() > give_up:
                    raise LearnerError(f"the learner of policy {policy.policy_id}: {describe(error)}") from error
            else:
                if state.state == learner_pb2.GANG_STATE_READY:
                    return state
                if state.state == learner_pb2.GANG_STATE_FAILED or time.monotonic() > give_up:
                    name = learner_pb2.GangState.Name(state.state)
                    raise LearnerError(f"the learner of policy {policy.policy_id} is {name}: {state.detail}")
            await asyncio.sleep(_POLL_SECONDS)
