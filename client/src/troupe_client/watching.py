"""Waits for an eval job, with a bar while it runs."""

from troupe.v1 import evaluation_pb2

from troupe_client import frame
from troupe_client.phase import Phase
from troupe_client.render_text import plain
from troupe_client.render_train import condition_line
from troupe_client.sdk import Client


async def watch_eval(client: Client, job: evaluation_pb2.EvalJob, what: str = "evaluating") -> evaluation_pb2.EvalJob:
    """The job as it ended."""
    with Phase(frame.err, what, job.items_total, job.items_done) as phase:
        async for event in client.watch_eval(job.job_id):
            phase.advance_to(event.job.items_done, event.job.items_total)
            if event.HasField("condition"):
                frame.err.print(plain(condition_line(event.condition), "yellow"))
    return await client.get_eval(job.job_id)
