"""Cross-play: designer {before, after} × executor {before, after}, as four eval jobs on the same problems.

Each system is evaluated as it is, then each one's designs are played again by the other one's executor: no engine has to
hold two versions, so it works where one policy plays both roles, and both executors play the very same scripts.

Jobs are known by a name and their place in the table. The same call again goes on with those that are there.
"""

from typing import Final

from troupe.v1 import evaluation_pb2

from troupe_client import render_eval
from troupe_client.frame import CommandError
from troupe_client.sdk import Client
from troupe_client.watching import watch_eval

SIDES: Final = ("before", "after")
Cells = dict[tuple[str, str], evaluation_pb2.EvalJob]
"""(designer's side, executor's side) to the job that has ended."""

_STOPPED: Final = (evaluation_pb2.EVAL_STATE_FAILED, evaluation_pb2.EVAL_STATE_CANCELLED)


async def cross_play(
    client: Client, request: evaluation_pb2.CreateEvalJobRequest, before: evaluation_pb2.EvalTarget, name: str
) -> Cells:
    """Run what is left of the four jobs, one after another.

    Args:
        request: of mode SYSTEM; its target is the system after training.
        name: of the whole; the jobs' ids begin with it.

    Raises:
        CommandError: a job did not succeed, or a system changed between two of them.
    """
    targets = {"before": before, "after": request.target}
    cells: Cells = {}
    for side, target in targets.items():
        cells[side, side] = await ended(client, _variant(request, f"{name}-{side}", target))
    for designer, executor in (SIDES, SIDES[::-1]):
        cell = _variant(request, f"{name}-{designer}-{executor}", _executor_of(targets[executor]))
        cell.mode = evaluation_pb2.EVAL_MODE_STORED_DESIGNS
        cell.designs_of = cells[designer, designer].job_id
        job = cells[designer, executor] = await ended(client, cell)
        if job.executor_version != cells[executor, executor].executor_version:
            raise CommandError(
                f"the executor {executor} was {render_eval.version(cells[executor, executor].executor_version)} in eval job "
                f"{cells[executor, executor].job_id} and {render_eval.version(job.executor_version)} in {job.job_id}: name "
                "a checkpoint instead of what the engines happen to serve, and give the whole another --job-id"
            )
    return cells


async def ended(client: Client, request: evaluation_pb2.CreateEvalJobRequest) -> evaluation_pb2.EvalJob:
    """A job, run to its end from where it stands.

    Raises:
        CommandError: it did not succeed.
    """
    job = await client.create_eval(request)
    if job.state in _STOPPED:
        job = await client.resume_eval(job.job_id)
    job = await watch_eval(client, job, job.job_id)
    if job.state != evaluation_pb2.EVAL_STATE_SUCCEEDED:
        raise CommandError(f"eval job {job.job_id} {render_eval.state(job)}: {job.reason or 'no reason given'}")
    return job


def _variant(
    request: evaluation_pb2.CreateEvalJobRequest, job_id: str, target: evaluation_pb2.EvalTarget
) -> evaluation_pb2.CreateEvalJobRequest:
    variant = evaluation_pb2.CreateEvalJobRequest()
    variant.CopyFrom(request)
    variant.job_id = job_id
    variant.target.CopyFrom(target)
    return variant


def _executor_of(target: evaluation_pb2.EvalTarget) -> evaluation_pb2.EvalTarget:
    """The target without a designer of its own, which nobody would ask."""
    if target.endpoint.executor:
        return evaluation_pb2.EvalTarget(endpoint=evaluation_pb2.EndpointTarget(executor=target.endpoint.executor))
    if target.endpoint.designer:
        return evaluation_pb2.EvalTarget(current=evaluation_pb2.CurrentTarget())
    return target
