"""Jobs that another job builds upon: they have ended, on the same problems, with a result for every item. Such a job does
not change any more, so what is taken from it is the same at every restart.
"""

import asyncio
from pathlib import Path

from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, NotFound

from troupe_orchestrator.evaluation.fixed_designs import asks_designer
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord, EvalState

_Request = evaluation_pb2.CreateEvalJobRequest


async def check_references(request: _Request, database: Database, most_votes: int) -> float:
    """Refuse a job that cannot build upon those that its request names.

    Args:
        most_votes: that an item may have.

    Returns:
        The votes of an item of mode MAJORITY, their mean where items differ; 0 in other modes.

    Raises:
        NotFound: there is no such job.
        FailedPrecondition: it does not fit, or lacks results.
    """
    if request.designs_of:
        source = _asked(await _finished(request.designs_of, request, database))
        if not asks_designer(source):
            raise FailedPrecondition(request.designs_of, f"has no designs, its mode is {_mode(source)}")
        if source.samples != request.samples:
            raise FailedPrecondition(
                request.designs_of, f"has samples {source.samples}, asked for {request.samples}: a design for each item"
            )
    if not request.HasField("equal_tokens"):
        return float(request.votes)
    equal = request.equal_tokens
    system = await _finished(equal.system_job, request, database)
    agent = await _finished(equal.agent_job, request, database)
    if _asked(agent).mode != evaluation_pb2.EVAL_MODE_SINGLE_AGENT:
        raise FailedPrecondition(equal.agent_job, f"is to say what one agent takes, its mode is {_mode(_asked(agent))}")
    votes = _mean_tokens(system) / max(1.0, _mean_tokens(agent))
    if not 1 <= votes <= most_votes:
        raise FailedPrecondition(
            equal.system_job,
            f"generated {_mean_tokens(system):.1f} tokens for an item, one agent {_mean_tokens(agent):.1f}: {votes:.2f} "
            f"votes are equal to that, an item may have 1 to {most_votes}",
        )
    return votes


async def _finished(job_id: str, request: _Request, database: Database) -> EvalRecord:
    record = await store.get_job(database, job_id)
    if record is None:
        raise NotFound("eval job", job_id)
    source = _asked(record)
    if source.limit != request.limit:
        raise FailedPrecondition(job_id, f"has limit {source.limit}, asked for {request.limit}")
    if await asyncio.to_thread(Path(record.dataset_file).read_bytes) != request.dataset:
        raise FailedPrecondition(job_id, f"ran other problems than {request.dataset_name or 'these'}")
    counts = await store.count_items(database, job_id)
    missing = record.problems * source.samples - counts.done + counts.faulted
    if record.state is not EvalState.SUCCEEDED or missing:
        raise FailedPrecondition(
            job_id,
            f"is {record.state} and lacks {missing} results: have it finish (`troupe eval --retry-faults {job_id}`)",
        )
    return record


def _asked(record: EvalRecord) -> _Request:
    return _Request.FromString(record.request)


def _mode(request: _Request) -> str:
    return evaluation_pb2.EvalMode.Name(request.mode)


def _mean_tokens(record: EvalRecord) -> float:
    """Tokens generated for an item, the designer's too."""
    assert record.summary is not None, "it has succeeded"
    tokens: int = evaluation_pb2.EvalSummary.FromString(record.summary).generated_tokens
    return tokens / (record.problems * _asked(record).samples)
