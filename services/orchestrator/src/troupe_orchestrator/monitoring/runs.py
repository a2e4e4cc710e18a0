"""Runs and their newest committed steps as metrics: a listener of all runs. Used on the event loop only.

Scalars of a step keep the value of the newest one until the run ends for good; a run that is paused keeps its own. Which run
it is stands in the label `run`: a handful at a time.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from re import Pattern
from typing import Final

from prometheus_client import Counter, Gauge
from troupe.v1 import training_pb2

from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunState, runs_in_state
from troupe_orchestrator.store.steps import committed_steps


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A gauge of scalars of a step. The groups of `names` are its labels, beside the run."""

    names: Pattern[str]
    gauge: Gauge

    @classmethod
    def of(cls, names: str, gauge: str, text: str) -> "_Scalar":
        pattern = re.compile(names)
        return cls(pattern, Gauge(gauge, text, ["run", *pattern.groupindex]))


# Of a run with one policy the learner's scalars have no policy in their name.
_LEARNER: Final = r"learner_(?:(?P<policy>.+)/)?"
SCALARS: Final = (
    _Scalar.of(r"reward_(?P<role>designer|executor)", "troupe_step_reward", "Mean reward of a role's samples."),
    _Scalar.of(r"success", "troupe_step_success", "Share of the executions asked for whose answer is right."),
    _Scalar.of(r"valid_scripts", "troupe_step_valid_scripts", "Share of the designs whose script may run."),
    _Scalar.of(r"zero_variance", "troupe_step_zero_variance", "Share of the trained role's groups with one reward."),
    _Scalar.of(r"policy_faults", "troupe_step_policy_faults", "Executions that ended by the policy's own doing."),
    _Scalar.of(r"tasks_dropped", "troupe_step_tasks_dropped", "Tasks dropped for faults of ours."),
    _Scalar.of(
        r"drop_rate/(?P<question>.+)", "troupe_step_drop_rate", "Share of the tasks dropped, by question length."
    ),
    _Scalar.of(
        r"seconds_(?P<part>rollout|seal|update|sync)", "troupe_step_seconds", "Seconds that a part of the step took."
    ),
    _Scalar.of(r"seconds_paused", "troupe_step_paused_seconds", "Longest pause of an engine to load weights."),
    _Scalar.of(r"generated_tokens", "troupe_step_generated_tokens", "Tokens sampled in the step's trees."),
    _Scalar.of(r"tokens_per_second", "troupe_step_tokens_per_second", "Tokens sampled per second of rollout."),
    _Scalar.of(r"probe_mean_error", "troupe_step_probe_error", "Nats between learner and engine after the load."),
    _Scalar.of(
        _LEARNER + r"mismatch_kl",
        "troupe_step_mismatch_kl",
        "Nats per token between learner and engine, before the update.",
    ),
    _Scalar.of(_LEARNER + r"entropy", "troupe_step_entropy", "Nats per trained token."),
    _Scalar.of(_LEARNER + r"grad_norm", "troupe_step_grad_norm", "Norm of the gradient before clipping."),
    _Scalar.of(r"drift_(?P<role>designer|executor)", "troupe_step_drift", "KL of the role that is not trained."),
    _Scalar.of(r"validation_success", "troupe_step_validation_success", "Success on the held-out tasks, when due."),
)
STEP: Final = Gauge("troupe_run_step", "Newest committed step.", ["run"])
STATE: Final = Gauge(
    "troupe_run_state", "1 for the state that a run is in; none once it has ended for good.", ["run", "state"]
)
PROGRESS_TIME: Final = Gauge(
    "troupe_run_progress_timestamp_seconds", "When a step was committed last, or the run began to run.", ["run"]
)
STEPS: Final = Counter("troupe_steps_committed_total", "Steps committed by this process.")
ENDINGS: Final = Counter("troupe_run_endings_total", "Runs that stopped or ended, by how.", ["state"])
CONDITIONS: Final = Counter("troupe_run_conditions_total", "Conditions told in the events of runs.", ["reason"])

_LIVE: Final = {
    training_pb2.RUN_STATE_RUNNING: "running",
    training_pb2.RUN_STATE_QUEUED: "queued",
    training_pb2.RUN_STATE_PAUSED: "paused",
}
_STOPPED: Final = {
    training_pb2.RUN_STATE_PAUSED: "paused",
    training_pb2.RUN_STATE_SUCCEEDED: "succeeded",
    training_pb2.RUN_STATE_FAILED: "failed",
    training_pb2.RUN_STATE_CANCELLED: "cancelled",
}
# There from the start, at 0: the first of its kind is an increase too.
_WATCHED_REASONS: Final = (
    "WeightSyncFailed",
    "InfrastructureFault",
    "TaskDropped",
    "TaskQuarantined",
    "DiskFull",
    "StoreUnavailable",
    "SandboxFull",
    "ExecutorFull",
    "DesignerFull",
)
for _state in _STOPPED.values():
    ENDINGS.labels(_state)
for _reason in _WATCHED_REASONS:
    CONDITIONS.labels(_reason)


class RunMetrics:
    """Listens to all runs of a process."""

    async def open(self, database: Database) -> None:
        """Tell of the runs that this process finds: nothing is stored again of one that simply goes on."""
        for number, state in _LIVE.items():
            for run in await runs_in_state(database, RunState(state)):
                _set_state(run.run_id, await committed_steps(database, run.run_id), number)

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        """Nothing is told of a step before it is committed."""

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        match event.WhichOneof("event"):
            case "step_committed":
                STEPS.inc()
                STEP.labels(run_id).set(event.step)
                PROGRESS_TIME.labels(run_id).set(time.time())
                _set_scalars(run_id, event.step_committed.metrics)
            case "state_changed":
                state = event.state_changed.state
                _set_state(run_id, event.step, state)
                if state in _STOPPED:
                    ENDINGS.labels(_STOPPED[state]).inc()
            case "condition":
                CONDITIONS.labels(event.condition.reason).inc()


def _set_scalars(run_id: str, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        for scalar in SCALARS:
            if found := scalar.names.fullmatch(name):
                scalar.gauge.labels(run_id, *(part or "" for part in found.groups())).set(value)


def _set_state(run_id: str, step: int, state: training_pb2.RunState.ValueType) -> None:
    """What is exported of a run in a state."""
    STATE.remove_by_labels({"run": run_id})
    if state in _LIVE:
        STATE.labels(run_id, _LIVE[state]).set(1)
    if state == training_pb2.RUN_STATE_RUNNING:
        STEP.labels(run_id).set(step)
        PROGRESS_TIME.labels(run_id).set(time.time())
    if state not in _LIVE:
        for gauge in (STEP, PROGRESS_TIME, *(scalar.gauge for scalar in SCALARS)):
            gauge.remove_by_labels({"run": run_id})
