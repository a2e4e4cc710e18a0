"""The engines of a run's policies: brought to what their learners made, and what that took recorded with the step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from troupe.v1 import policy_pb2, training_pb2

from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.loans import forget_loan
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step
from troupe_orchestrator.training.conditions import finite
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.policies import Policy, version_text
from troupe_orchestrator.training.probes import batch_probes
from troupe_orchestrator.training.weights import SyncReport, sync_weights

_BATCH_PROBES = 4
_SERVING = (policy_pb2.UPDATE_STATE_SERVING, policy_pb2.UPDATE_STATE_BEGUN, policy_pb2.UPDATE_STATE_STAGED)


class Serving:
    """The engines of all policies of one run."""

    def __init__(
        self,
        policies: Mapping[str, Policy],
        database: Database,
        events: EventLog,
        probe_bound: float,
    ) -> None:
        """Engines as they are.

        Args:
            policies: by id.
            probe_bound: how far an engine's log-probabilities may be from the learner's after a load.
        """
        self._policies = policies
        self._database = database
        self._events = events
        self._probe_bound = probe_bound
        self._probes: dict[str, list[list[int]]] = {}
        self._synced: list[tuple[SyncReport, float]] = []
        """What loads since the step was rolled out took."""

    async def begin(self) -> dict[str, str]:
        """A step's tasks are about to be rolled out: policy id to the version that its engines serve."""
        self._synced.clear()
        return {policy_id: await _version(policy) for policy_id, policy in self._policies.items()}

    def probe_on(self, policy_id: str, sequences: Sequence[NDArray[np.int32]]) -> None:
        """Have the next load of a policy tried on some of the token ids that it was trained on."""
        self._probes[policy_id] = batch_probes(sequences, _BATCH_PROBES)

    async def sync(self, policy: Policy, step: int) -> None:
        """Bring a policy's engines to its learner's weights.

        Raises:
            WeightSyncError: not one engine has them afterwards.
            NoReplicasError: none of those that have them is ready yet, or there is none.
        """
        begun = time.perf_counter()
        report = await sync_weights(
            policy.learner,
            policy.fleet,
            self._database.fence,
            [*policy.fixed_probes, *self._probes.get(policy.policy_id, [])],
            self._probe_bound,
        )
        self._synced.append((report, time.perf_counter() - begun))
        # Whatever an eval job left in the engines is gone, and what it was to give back is no longer current.
        await forget_loan(self._database, policy.policy_id)
        for failure in report.failures:
            await self._events.append(
                step,
                training_pb2.Condition(
                    reason="WeightSyncFailed",
                    message=failure,
                    remedy="the replica is out of rotation until it has the current weights",
                ),
            )
        # They have the weights and answer; who says that they are ready may not have said so yet.
        policy.fleet.require()

    async def record(self, record: StepRecord) -> None:
        """Record that the engines serve what a step has trained."""
        reports = [report for report, _ in self._synced]
        metrics = record.metrics | {"seconds_sync": sum(seconds for _, seconds in self._synced)}
        if reports:
            metrics["seconds_paused"] = max(report.paused_seconds for report in reports)
        for name in ("probe_mean_error", "probe_max_error"):
            errors = [error for report in reports if (error := getattr(report, name)) is not None]
            if errors:
                metrics[name] = max(errors)
        # A learner that was replaced meanwhile came to the same weights by replay, under a lineage of its own.
        served = {batch.policy_id: await _version(self._policies[batch.policy_id]) for batch in record.batches}
        synced = replace(record, versions=record.versions | served, metrics=finite(metrics))
        await advance_step(self._database, synced, StepState.SYNCED)
        self._synced.clear()


async def serves(policy: Policy, version: str) -> bool:
    """Whether every engine of a policy serves a version."""
    try:
        described = await policy.fleet.describe()
    except NoReplicasError:
        return False
    return all(info.state in _SERVING and version_text(info.version) == version for info in described)


async def _version(policy: Policy) -> str:
    """What a policy's engines serve, once they all serve the same."""
    return version_text((await policy.fleet.describe())[0].version)
