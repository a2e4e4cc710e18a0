"""Records of eval jobs as messages. Pure."""

import time
from collections.abc import Sequence

from troupe.v1 import evaluation_pb2

from troupe_orchestrator.store.evals import EvalRecord, ItemCounts
from troupe_orchestrator.training.messages import timestamp
from troupe_orchestrator.training.policies import parse_version


def job_message(record: EvalRecord, counts: ItemCounts) -> evaluation_pb2.EvalJob:
    """The job as clients see it."""
    job = _brief(record, counts)
    job.target.CopyFrom(evaluation_pb2.EvalTarget.FromString(record.target))
    job.dataset_errors.extend(
        evaluation_pb2.DatasetError(file=file, line=line, message=message) for file, line, message in record.errors
    )
    if record.summary is not None:
        job.summary.CopyFrom(evaluation_pb2.EvalSummary.FromString(record.summary))
    return job


def event_message(
    number: int,
    record: EvalRecord,
    counts: ItemCounts,
    items: Sequence[evaluation_pb2.EvalItem] = (),
    summary: evaluation_pb2.EvalSummary | None = None,
) -> evaluation_pb2.EvalEvent:
    """What happened to a job, that is in the state of `record` since."""
    event = evaluation_pb2.EvalEvent(
        event_id=number, job=_brief(record, counts), items=items, time=timestamp(time.time())
    )
    if summary is not None:
        event.job.summary.CopyFrom(summary)
    return event


def _brief(record: EvalRecord, counts: ItemCounts) -> evaluation_pb2.EvalJob:
    request = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
    versions = {role: parse_version(text) for role, text in record.versions.items()}
    return evaluation_pb2.EvalJob(
        job_id=record.job_id,
        state=evaluation_pb2.EvalState.Value(f"EVAL_STATE_{record.state.upper()}"),
        reason=record.reason,
        dataset_name=request.dataset_name,
        problems=record.problems,
        samples=request.samples,
        items_done=counts.done,
        items_faulted=counts.faulted,
        items_total=record.problems * request.samples,
        designer_version=versions.get("designer"),
        executor_version=versions.get("executor"),
        mode=request.mode or evaluation_pb2.EVAL_MODE_SYSTEM,
        create_time=timestamp(record.created_at),
        end_time=None if record.ended_at is None else timestamp(record.ended_at),
        run_id=record.run_id,
        step=record.step,
        designs_of=request.designs_of,
        equal_tokens=request.equal_tokens if request.HasField("equal_tokens") else None,
        votes=record.votes or request.votes,
    )
