"""What the orchestrator logs while it works, at the level that it has by default: no question, answer, script or reply."""

import logging
from collections.abc import Iterator

import pytest
import structlog
from orchestrated.models import SINGLE
from orchestrated.world import math_task
from troupe.v1 import evaluation_pb2, policy_pb2, training_pb2
from troupe_contracts import log
from troupe_contracts.errors import Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="session")

REFERENCE = "8675309"
MARKED = (
    "marked-question",
    "marked-script",
    "marked-reply",
    "marked-prompt",
    "marked-error",
    "marked-print",
    REFERENCE,
)
SCRIPT = SINGLE.replace("Solve it.", "marked-prompt") + "\nprint('marked-print')  # marked-script\n"
FAILING = "print('marked-print')\nraise ValueError('marked-error')  # marked-script\n"


@pytest.fixture
def logs() -> Iterator[None]:
    """Logs as a service writes them, to whatever stderr is."""
    handlers, level = logging.root.handlers[:], logging.root.level
    log.configure("info", "json", "orchestrator")
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = handlers, level


async def test_no_content_of_a_run_or_an_eval_job_is_logged(
    open_world, logs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    tasks = [math_task(f"task-{number}", question=f"marked-question {number}", answer=REFERENCE) for number in range(4)]
    calls = 0

    def reply(request: policy_pb2.GenerateRequest) -> str:
        nonlocal calls
        calls += 1
        if calls % 7 == 1:
            raise Unavailable("the engine is away")
        return rf"marked-reply <delivery>\boxed{{{REFERENCE if calls % 2 else 41}}}</delivery>"

    async with open_world(learner=True) as world:
        world.backends.policy.reply = reply
        world.backends.designer.otherwise = [SCRIPT, FAILING]
        await world.run(world.config(tasks))
        job = await world.evaluate(*tasks, samples=2)
        assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
    written = capfd.readouterr().err
    assert "the engine is away" in written, "nothing was logged at all"
    assert [marked for marked in MARKED if marked in written] == []
