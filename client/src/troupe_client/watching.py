"""Waits for an eval job, with a bar while it runs."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from troupe.v1 import evaluation_pb2

from troupe_client import frame
from troupe_client.sdk import Client


async def watch_eval(client: Client, job: evaluation_pb2.EvalJob, what: str = "evaluating") -> evaluation_pb2.EvalJob:
    """The job as it ended."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=frame.err, disable=not frame.err.is_terminal, transient=True) as progress:
        bar = progress.add_task("items", total=job.items_total, completed=job.items_done)
        async for event in client.watch_eval(job.job_id):
            progress.update(bar, completed=event.job.items_done, total=event.job.items_total)
    return await client.get_eval(job.job_id)
