"""The majority baseline whose votes make its tokens those of a system's job."""

from __future__ import annotations

import pytest
from orchestrated.models import RIGHT
from orchestrated.world import Backends, World, eval_request, math_task, refused
from troupe.v1 import evaluation_pb2, policy_pb2
from troupe_client.equal_tokens import measured_agent
from troupe_client.sdk import Client

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELD = [math_task(f"held-{number}") for number in range(4)]
MAJORITY, SINGLE = evaluation_pb2.EVAL_MODE_MAJORITY, evaluation_pb2.EVAL_MODE_SINGLE_AGENT
THREE = """
from workflow import AgentNode, Workflow
flow = Workflow()
for name in ("One", "Two", "Three"):
    flow.add_node(AgentNode(name, "Solve it."))
flow.run(question)
"""


def equal(system: str, agent: str) -> evaluation_pb2.EqualTokens:
    return evaluation_pb2.EqualTokens(system_job=system, agent_job=agent)


async def systems(world: World) -> None:
    """Jobs whose items take three turns of equal length and a design, and one turn."""
    world.backends.policy.reply = lambda request: RIGHT
    world.backends.designer.otherwise = [THREE]
    await world.evaluate(*HELD, job_id="system")
    await world.evaluate(*HELD, job_id="agent", mode=SINGLE)


async def test_all_items_together_have_the_votes_that_make_the_tokens_equal(open_world, stand_ins: Backends) -> None:
    async with open_world() as world:
        await systems(world)
        turn, design = len(RIGHT), len(THREE)
        votes = (3 * turn + design) / turn
        job = await world.evaluate(*HELD, mode=MAJORITY, equal_tokens=equal("system", "agent"))
        assert job.votes == pytest.approx(votes)
        assert job.equal_tokens == equal("system", "agent")
        counts = [item.generated_tokens // turn for item in await world.items(job.job_id)]
        assert (sum(counts), max(counts) - min(counts)) == (int(4 * votes), 1)
        again = evaluation_pb2.GetEvalJobRequest(job_id=job.job_id)
        assert (await world.evaluation.GetEvalJob(again)).votes == job.votes


async def test_jobs_that_say_nothing_of_these_problems_are_refused_by_name(open_world, stand_ins: Backends) -> None:
    async with open_world() as world:
        await systems(world)
        for fields, code, said in (
            ({"equal_tokens": equal("nobody", "agent")}, "NOT_FOUND", "nobody"),
            ({"equal_tokens": equal("system", "system")}, "FAILED_PRECONDITION", "one agent"),
            ({"equal_tokens": equal("system", "")}, "INVALID_ARGUMENT", "equal_tokens.agent_job"),
            ({"equal_tokens": equal("system", "agent"), "votes": 3}, "INVALID_ARGUMENT", "votes"),
            ({"equal_tokens": equal("system", "agent"), "mode": SINGLE}, "INVALID_ARGUMENT", "equal_tokens"),
            ({"equal_tokens": equal("system", "agent"), "limit": 2}, "FAILED_PRECONDITION", "limit"),
        ):
            with refused(code, said):
                await world.evaluation.CreateEvalJob(eval_request(*HELD, **{"mode": MAJORITY, **fields}))

        def long(request: policy_pb2.GenerateRequest) -> str:
            return "thinks" * 200 + RIGHT

        stand_ins.policy.reply = long
        await world.evaluate(*HELD, job_id="wordy", mode=SINGLE)
        with refused("FAILED_PRECONDITION", "0.", "an item may have 1 to"):
            request = eval_request(*HELD, mode=MAJORITY, equal_tokens=equal("system", "wordy"))
            await world.evaluation.CreateEvalJob(request)


async def test_one_agent_is_measured_under_the_conditions_of_the_vote(open_world) -> None:
    async with open_world() as world, Client(world.target) as client:
        request = eval_request(*HELD, job_id="rival", mode=MAJORITY, samples=2)
        agent = await measured_agent(client, request)
        assert (agent.job_id, agent.mode, agent.items_done) == ("rival-agent", SINGLE, 8)
