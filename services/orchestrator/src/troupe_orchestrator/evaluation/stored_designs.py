"""Designs of a job that has ended, for another one to play: the same scripts with another executor.

That is what cross-play needs where one policy plays both roles: its engines hold one version at a time, so one version
designs in the first job and another executes in the second.
"""

import asyncio
from pathlib import Path

from troupe.v1 import designer_pb2, evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, NotFound

from troupe_orchestrator.evaluation.fixed_designs import FixedDesigns, asks_designer
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalState
from troupe_orchestrator.store.executions import tree_files
from troupe_orchestrator.store.trees import read_designs
from troupe_orchestrator.tree import DesignPayload, task_node_id


async def check_designs(request: evaluation_pb2.CreateEvalJobRequest, database: Database) -> None:
    """Refuse a job whose designs cannot be played for a request. One that is not refused does not change any more.

    Raises:
        NotFound: there is no such job.
        FailedPrecondition: it has no designs, or not for every item.
    """
    job_id = request.designs_of
    record = await store.get_job(database, job_id)
    if record is None:
        raise NotFound("eval job", job_id)
    source = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
    if not asks_designer(source):
        raise FailedPrecondition(job_id, f"has no designs, its mode is {evaluation_pb2.EvalMode.Name(source.mode)}")
    for name in ("samples", "limit"):
        if getattr(source, name) != getattr(request, name):
            raise FailedPrecondition(job_id, f"has {name} {getattr(source, name)}, asked for {getattr(request, name)}")
    if await asyncio.to_thread(Path(record.dataset_file).read_bytes) != request.dataset:
        raise FailedPrecondition(job_id, f"ran other problems than {request.dataset_name or 'these'}")
    counts = await store.count_items(database, job_id)
    missing = record.problems * source.samples - counts.done + counts.faulted
    if record.state is not EvalState.SUCCEEDED or missing:
        raise FailedPrecondition(
            job_id,
            f"is {record.state} and lacks {missing} results: have it finish (`troupe eval --retry-faults {job_id}`)",
        )


async def stored_designs(job_id: str, database: Database) -> tuple[FixedDesigns, str]:
    """The designs of a job that `check_designs` let pass, and the version that made them.

    Raises:
        FailedPrecondition: its trees are gone.
    """
    record = await store.get_job(database, job_id)
    assert record is not None, "jobs are never removed"
    files = await tree_files(database, job_id)
    try:
        payloads = await asyncio.to_thread(_read, files)
    except OSError as error:
        raise FailedPrecondition(job_id, f"has no trees to take designs from: {error}") from error

    def design(task_id: str, sample: int) -> designer_pb2.Design:
        return _message(payloads[task_node_id(job_id, sample, task_id)])

    return design, record.versions["designer"]


def _read(files: list[str]) -> dict[str, DesignPayload]:
    """Id of a task's node to its design."""
    return {task: payload for file in files for task, payload in read_designs(Path(file))}


def _message(payload: DesignPayload) -> designer_pb2.Design:
    return designer_pb2.Design(
        text=payload.text,
        script=payload.script,
        problems=[designer_pb2.ScriptProblem(message=problem) for problem in payload.problems],
        declared_pattern=payload.declared_pattern,
    )
