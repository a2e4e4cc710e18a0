"""Designs of a job that has ended, for another one to play: the same scripts with another executor.

That is what cross-play needs where one policy plays both roles: its engines hold one version at a time, so one version
designs in the first job and another executes in the second.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from troupe.v1 import designer_pb2
from troupe_contracts.errors import FailedPrecondition

from troupe_orchestrator.evaluation.fixed_designs import FixedDesigns
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import tree_files
from troupe_orchestrator.store.trees import TreesDamagedError, read_designs
from troupe_orchestrator.tree import DesignPayload, task_node_id


async def stored_designs(job_id: str, database: Database) -> tuple[FixedDesigns, str]:
    """The designs of a job that another one may build upon, and the version that made them.

    Raises:
        FailedPrecondition: its trees are gone or damaged.
    """
    record = await store.get_job(database, job_id)
    assert record is not None, "jobs are never removed"
    files = await tree_files(database, job_id)
    try:
        payloads = await asyncio.to_thread(_read, files)
    except (OSError, TreesDamagedError) as error:
        raise FailedPrecondition(
            job_id,
            f"has no trees to take designs from: {error}; put it back from a copy, or run the job again as another",
        ) from error

    def design(task_id: str, sample: int, number: int) -> designer_pb2.Design:
        return _message(payloads[task_node_id(job_id, sample, task_id)])

    return design, record.versions["designer"]


def _read(files: Mapping[str, str]) -> dict[str, DesignPayload]:
    """Id of a task's node to its design."""
    return {task: payload for file, digest in files.items() for task, payload in read_designs(Path(file), digest)}


def _message(payload: DesignPayload) -> designer_pb2.Design:
    return designer_pb2.Design(
        text=payload.text,
        script=payload.script,
        problems=[designer_pb2.ScriptProblem(message=problem) for problem in payload.problems],
        declared_pattern=payload.declared_pattern,
    )
