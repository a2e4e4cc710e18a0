"""`troupe eval --votes equal:JOB`: the majority baseline that generates a system's mean tokens.

How many votes those are is the orchestrator's to say, from two jobs: the system's, and one of a single agent, which is
created here on the same problems.
"""

from typing import Final

import typer
from troupe.v1 import evaluation_pb2

from troupe_client.cross_play import ended
from troupe_client.sdk import Client

EQUAL: Final = "equal:"
_MAX_VOTES: Final = 256


def votes_option(text: str) -> str:
    """Refuses what is neither a number of votes nor a job to equal."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1
    if not (0 <= number <= _MAX_VOTES or (text.startswith(EQUAL) and text != EQUAL)):
        raise typer.BadParameter(f"{text!r:.80} is neither a number of at most {_MAX_VOTES} nor equal:JOB")
    return text


async def measured_agent(client: Client, request: evaluation_pb2.CreateEvalJobRequest) -> evaluation_pb2.EvalJob:
    """One agent on the request's problems, as a job that is told from it by its id; run to its end.

    Raises:
        CommandError: the job did not succeed.
    """
    single = evaluation_pb2.CreateEvalJobRequest()
    single.CopyFrom(request)
    single.job_id = f"{request.job_id}-agent"
    single.mode = evaluation_pb2.EVAL_MODE_SINGLE_AGENT
    return await ended(client, single)
