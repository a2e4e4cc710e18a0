"""Validation inside a run: an eval job over held-out problems at every k-th step, before the step is committed.

The job's id is a function of run and step, so that a run which is killed goes on with the very job: no item is repeated, and
a step is validated once. Its summary is committed with the step. What goes wrong in it on our side is told in the run's
events, under the job's name, and counts in nothing of the step's own: no metric, no drop.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from troupe.v1 import common_pb2, evaluation_pb2, training_pb2

from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.grading.grades import UNGRADABLE
from troupe_orchestrator.rollout.fault_report import FaultReport
from troupe_orchestrator.run_config import RunConfig, ServingConfig
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord, EvalState, ItemRecord, list_items
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.held_out import HeldOut
from troupe_orchestrator.training.ungradable import ungradable_answers


@dataclass(frozen=True, slots=True)
class Validated:
    """How a step was validated."""

    metrics: dict[str, float]
    events: Sequence[training_pb2.EvalFinished | training_pb2.Condition]


NOT_DUE = Validated({}, ())
"""A step that is not validated."""


class Validation:
    """The validations of one run."""

    def __init__(
        self,
        jobs: EvalJobs,
        run_id: str,
        config: RunConfig,
        held_out: HeldOut,
        events: EventLog,
        database: Database,
    ) -> None:
        assert config.validation is not None
        self._jobs = jobs
        self._run_id = run_id
        self._config = config.validation
        self._seed = config.seed
        self._held_out = held_out
        self._events = events
        self._database = database
        self._report_of = 0
        self._report = FaultReport(partial(events.append, 0))
        """Of the newest step: what it has told is not told again when the job goes on."""
        self._serving = ServingConfig(
            temperature=config.validation.temperature,
            sampling=config.sampling,
            budgets=config.budgets,
            delivery_instruction=config.delivery_instruction,
            rewards=config.rewards,
            max_attempts=config.rollout.max_attempts,
        )

    async def after(self, step: int) -> Validated:
        """Validate a step's weights, which the engines serve, where the step is due. For whoever holds the boundary.

        What goes wrong on our side is raised, and the same job goes on at the next call.
        """
        if step % self._config.every:
            return NOT_DUE
        job_id = f"{self._run_id}.step-{step}"
        request = evaluation_pb2.CreateEvalJobRequest(
            job_id=job_id,
            dataset_name=self._held_out.name,
            dataset=self._held_out.content,
            format=self._config.format or "",
            samples=self._config.samples,
            limit=self._config.limit or 0,
            # The same sampling at every step: steps differ by their weights.
            sampling=common_pb2.Sampling(temperature=self._config.temperature, seed=self._seed),
        )
        record = await self._validate(request, step)
        if record.state is not EvalState.SUCCEEDED or record.summary is None:
            return Validated({}, [_not_validated(job_id, record.reason)])
        summary = evaluation_pb2.EvalSummary.FromString(record.summary)
        metrics = {
            "success": summary.success,
            "success_low": summary.success_low,
            "success_high": summary.success_high,
            "valid_scripts": summary.valid_scripts,
            "coverage": summary.coverage,
            "generated_tokens": float(summary.generated_tokens),
            "seconds": summary.seconds,
        }
        told: list[training_pb2.EvalFinished | training_pb2.Condition] = [
            training_pb2.EvalFinished(eval_job_id=job_id, metrics=metrics)
        ]
        if summary.faults:
            told.append(_incomplete(job_id, summary))
        items = await list_items(self._database, job_id)
        told += ungradable_answers(await asyncio.to_thread(_ungradable, items), len(items), _named(job_id))
        return Validated({f"validation_{name}": value for name, value in metrics.items()}, told)

    async def _validate(self, request: evaluation_pb2.CreateEvalJobRequest, step: int) -> EvalRecord:
        """Run the job, which tells the run which faults it meets."""
        if self._report_of != step:
            self._report_of = step
            self._report = FaultReport(partial(self._events.append, step), _named(request.job_id))
        return await self._jobs.validate(request, self._run_id, step, self._serving, self._report)


def _named(job_id: str) -> str:
    return f"validation {job_id}"


def _ungradable(records: Sequence[ItemRecord]) -> list[tuple[str, str]]:
    """(problem, reason) of each item whose answer no grader could grade."""
    items = [evaluation_pb2.EvalItem.FromString(record.payload) for record in records]
    return [(item.problem_id, item.reason) for item in items if item.reason.startswith(UNGRADABLE)]


def _not_validated(job_id: str, reason: str) -> training_pb2.Condition:
    return training_pb2.Condition(
        reason="ValidationEnded",
        message=f"the validation {job_id} gave no result: {reason}",
        remedy="the step goes without; evaluate its checkpoint, or wait for the next validation",
    )


def _incomplete(job_id: str, summary: evaluation_pb2.EvalSummary) -> training_pb2.Condition:
    return training_pb2.Condition(
        reason="ValidationIncomplete",
        message=f"{summary.faults} items of {job_id} ended in faults of ours, coverage {summary.coverage:.3f}",
        remedy="the step cannot become the best one; `troupe eval --items` names the faults",
    )
