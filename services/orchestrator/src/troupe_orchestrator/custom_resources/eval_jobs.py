"""Eval jobs behind EvalJobs."""

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.custom_resources.backing import Shown
from troupe_orchestrator.custom_resources.decisions import State
from troupe_orchestrator.custom_resources.messages import fields_of, message_of
from troupe_orchestrator.custom_resources.resources import EVAL_JOB, Resource
from troupe_orchestrator.datasets.reading import read_data_set
from troupe_orchestrator.evaluation.messages import job_message
from troupe_orchestrator.evaluation.requests import MAX_DATASET_BYTES
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord
from troupe_orchestrator.store.runs import RunState

STATUS_FIELDS: Final = (
    "job_id", "dataset_name", "problems", "items_done", "items_faulted", "items_total", "dataset_errors",
    "designer_version", "executor_version", "create_time", "end_time",
)  # fmt: skip
"""Of troupe.v1.EvalJob."""
SUMMARY_FIELDS: Final = (
    "success", "success_low", "success_high", "valid_scripts", "parseable", "success_parseable", "generated_tokens",
    "seconds", "faults", "coverage",
)  # fmt: skip
"""Of its EvalSummary: a status holds no groups, which are as many as a data set's families."""
NOT_IN_SPEC: Final = frozenset({"job_id", "dataset_name", "dataset"})
"""Fields of CreateEvalJobRequest that a spec says in another way: the object's uid, and where the problems are."""
_MOST_ERRORS: Final = 10


class JobControl(Protocol):
    """As much of `evaluation.jobs.EvalJobs` as objects need."""

    async def create(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord:
        """See EvalJobs."""

    async def cancel(self, job_id: str) -> EvalRecord:
        """See EvalJobs."""


def create_eval_request(resource: Resource, content: bytes) -> evaluation_pb2.CreateEvalJobRequest:
    """The call that an EvalJob stands for.

    Args:
        content: of its data set.

    Raises:
        InvalidArgument: the spec says something that no call can.
    """
    rest = {key: value for key, value in resource.spec.items() if key not in ("dataset", "desiredState")}
    request = message_of(rest, evaluation_pb2.CreateEvalJobRequest())
    path = resource.spec["dataset"].get("path")
    request.job_id = resource.uid
    request.dataset_name = PurePosixPath(path).name if path else f"{resource.name}.jsonl"
    request.dataset = content
    return request


def dataset_of(spec: Mapping[str, Any]) -> bytes:
    """The problems that a spec holds, or the file that it names. Reads that: not for an event loop.

    Raises:
        InvalidArgument: there is neither, or both, or the file cannot be read.
    """
    given = spec.get("dataset") or {}
    path, inline = given.get("path"), given.get("inline")
    if (path is None) == (inline is None):
        raise InvalidArgument("dataset", "needs one of path and inline")
    if inline is not None:
        return str(inline).encode()
    file = Path(str(path))
    if not file.is_absolute():
        raise InvalidArgument("dataset.path", f"{path}: must begin with /, it is read by the orchestrator")
    return read_data_set(file, MAX_DATASET_BYTES, "dataset.path")


class JobsBehindObjects:
    """See `backing.Backing`."""

    kind = EVAL_JOB

    def __init__(self, jobs: JobControl, database: Database) -> None:
        self._jobs = jobs
        self._database = database

    async def state(self, uid: str) -> State:
        record = await store.get_job(self._database, uid)
        return None if record is None else RunState(record.state.value)

    async def create(self, resource: Resource) -> None:
        # The file may be another by now, which an id that is taken would be refused for.
        if await store.get_job(self._database, resource.uid) is None:
            content = await asyncio.to_thread(dataset_of, resource.spec)
            await self._jobs.create(create_eval_request(resource, content))

    async def pause(self, uid: str) -> None:
        raise InvalidArgument("desiredState", "no EvalJob can be paused: cancel it, or let it run")

    async def resume(self, uid: str, generation: int) -> None:
        raise InvalidArgument("desiredState", "no EvalJob is gone on with: apply another")

    async def cancel(self, uid: str) -> None:
        await self._jobs.cancel(uid)

    async def show(self, uid: str) -> Shown | None:
        record = await store.get_job(self._database, uid)
        if record is None:
            return None
        message = job_message(record, await store.count_items(self._database, uid))
        del message.dataset_errors[_MOST_ERRORS:]
        fields = fields_of(message, STATUS_FIELDS)
        if message.HasField("summary"):
            summary = message.summary
            fields["summary"] = fields_of(summary, SUMMARY_FIELDS)
            fields["display"] = {
                "accuracy": f"{summary.success:.3f}",
                "ci95": f"{summary.success_low:.3f}-{summary.success_high:.3f}",
            }
        return Shown(RunState(record.state.value), record.reason, "", fields)
