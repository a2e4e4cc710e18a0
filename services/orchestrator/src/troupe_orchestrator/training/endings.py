"""How the loop of a run can end, and what is told of it. A table from errors to a state, a reason and a condition.

What an operator can mend pauses the run; a defect of ours fails it. Neither says anything about a policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from sqlalchemy.exc import SQLAlchemyError
from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, Unavailable, describe

from troupe_orchestrator.rotation import NobodyCanServeError, NoReplicasError
from troupe_orchestrator.store.batches import BatchCollectedError
from troupe_orchestrator.store.files import DISK_FULL
from troupe_orchestrator.store.runs import RunState
from troupe_orchestrator.training.conditions import Violation
from troupe_orchestrator.training.learner import (
    BaseGoneError,
    CheckpointUnreadableError,
    LearnerDiskFullError,
    LearnerError,
    NonFiniteStepError,
    OperationStalledError,
    OtherWeightsError,
)
from troupe_orchestrator.training.queue import NoTasksError
from troupe_orchestrator.training.weights import WeightSyncError

_THEN = "then resume the run"


class EverythingDroppedError(RuntimeError):
    """No task of a step could be rolled out: something of ours is down."""


class ConditionsViolatedError(RuntimeError):
    """Conditions of the run's config hold after its newest step."""

    def __init__(self, step: int, violations: Sequence[Violation]) -> None:
        super().__init__(
            f"after step {step} "
            + "; ".join(f"{each.reason}: {each.message}. Remedy: {each.remedy}" for each in violations)
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run is after its loop ended with an error."""

    state: RunState
    reason: str
    condition: training_pb2.Condition | None
    """To be told before the change of state; None where it has been told."""


_MENDABLE: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        NonFiniteStepError,
        "NonFiniteGradient",
        "the learner undid the step, and the same batch would end so again: fork the run from an earlier step, with a "
        "lower optimization.learning_rate or another seed",
    ),
    (BatchCollectedError, "BatchCollected", f"restart the learner from a checkpoint of this run that is kept, {_THEN}"),
    (LearnerDiskFullError, "DiskFull", f"free space there, which the learner notices by itself, {_THEN}"),
    (
        OperationStalledError,
        "LearnerStalled",
        f"look at the learner's log and its ranks' logs (ranks/ in its work folder), restart it, {_THEN}",
    ),
    (
        OtherWeightsError,
        "OtherWeights",
        f"start the learner on the model files that the run began with, {_THEN}; to train from these, create a new run",
    ),
    (BaseGoneError, "BaseGone", "fork its parent again: `troupe runs show` lists the steps that can be"),
    (
        CheckpointUnreadableError,
        "CheckpointUnreadable",
        "the run goes on from a kept checkpoint before it, where it has one, and the batches since; where it has none, put "
        f"the folder back as it was saved, {_THEN}, or fork the run from a step that `troupe runs show` lists",
    ),
    (LearnerError, "LearnerFailed", f"look at the learner's log and at `troupe status`, restart it, {_THEN}"),
    (WeightSyncError, "WeightSyncFailed", f"look at the executor's log and at `troupe status`, restart it, {_THEN}"),
    (EverythingDroppedError, "EverythingDropped", f"mend the service that the fault names, {_THEN}"),
    (
        NobodyCanServeError,
        "WeightsGone",
        f"look at why engines and learner were lost together (their logs, `troupe status`), {_THEN}",
    ),
    (NoReplicasError, "NoExecutors", f"start an executor, {_THEN}"),
    (NoTasksError, "NoTasks", "fork the run, which counts drops anew, once what dropped the tasks is mended"),
    (FailedPrecondition, "ValidationRefused", f"mend what it names, {_THEN}"),
    (Unavailable, "StoreUnavailable", f"mend the store, {_THEN}"),
    (SQLAlchemyError, "StoreFailed", f"look at the store's log, {_THEN}"),
    (grpc.RpcError, "ServiceUnavailable", f"look at `troupe status` and at the service's log, {_THEN}"),
    (OSError, "StorageFailed", f"mend the disk or its permissions, {_THEN}"),
)
"""What can be mended, what it is called and how. The first that fits counts."""


def ending_of(error: BaseException) -> Ending:
    """What a run is to be after this error."""
    text = describe(error) if isinstance(error, grpc.RpcError) else str(error)
    if isinstance(error, ConditionsViolatedError):
        return Ending(RunState.PAUSED, f"{text}. Resume the run to go on regardless", None)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return _paused("DiskFull", text, f"free space there, {_THEN}")
    for kind, name, remedy in _MENDABLE:
        if isinstance(error, kind):
            return _paused(name, text, remedy)
    failed = f"{type(error).__name__}: {text}"
    remedy = "a defect: the orchestrator's log has the traceback; resuming tries again"
    return Ending(
        RunState.FAILED, failed, training_pb2.Condition(reason="InternalError", message=failed, remedy=remedy)
    )


def _paused(name: str, text: str, remedy: str) -> Ending:
    condition = training_pb2.Condition(reason=name, message=text, remedy=remedy)
    return Ending(RunState.PAUSED, f"{name}: {text}; {remedy}", condition)
