"""Nothing that a policy is paid for, refused or trained on depends on who was faster: the real sandbox, seeded replies.

A clock only stops what hangs, and whose wall it was decides whether that is a fault of ours.
"""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrated.models import SINGLE
from orchestrated.world import Backends
from troupe.v1 import common_pb2, policy_pb2
from troupe_orchestrator.datasets.task import MathReference, Task
from troupe_orchestrator.fleet import PolicyFleet, SandboxFleet
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rewards import RewardConfig
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.rollout.task import RolloutPlan, Services, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import Timeline
from troupe_orchestrator.run_config import Budgets, DeliveryInstruction
from troupe_orchestrator.tree import ExecutionPayload, ExecutionStatus, NodeKind, Tree

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENSEMBLE = """
from workflow import AgentNode, EnsembleNode, Workflow
flow = Workflow()
flow.add_node(AgentNode("Planner", "Plan it."))
flow.add_node(EnsembleNode("Vote", [AgentNode(name, "Solve it.") for name in ("A", "B", "C")]))
flow.run(question)
"""
DEBATE = """
from workflow import AgentNode, DebateNode, Workflow
flow = Workflow()
flow.add_node(DebateNode("Debate", [AgentNode("A", "Solve it."), AgentNode("B", "Solve it.")], rounds=2))
flow.run(question)
"""
SLEEP = SINGLE.replace("flow.run(question)", "import time\ntime.sleep(60)")
LOOP = """
from workflow import AgentNode, Workflow
for _ in range(6):
    flow = Workflow()
    flow.add_node(AgentNode("Again", "Solve it."))
    result = flow.run(question)
"""
# By itself each takes twice what DAWDLING lets it, which is half of what the sandbox waits for it in all.
SLEEPS_AFTER = SINGLE + "import time\ntime.sleep(5)\n"
SLEEPS_BEFORE = "import time\ntime.sleep(5)\n" + SINGLE
TASK = Task("task", "arithmetic", "math", "What is 6 * 7?", MathReference("42"))
TOOL = "I reckon.\n```python\nprint(6 * 7)\n```"
REPLIES = (r"<delivery>\boxed{42}</delivery>", r"<delivery>\boxed{41}</delivery>", TOOL, TOOL, "I do not know. " * 8)
BUDGETS = {
    "ample": Budgets(),
    "few calls": Budgets(agent_calls=5),
    "few tokens": Budgets(tokens=300),
    "few turns": Budgets(turns=2),
}
# Four times that long the sandbox waits for turns, too: enough for a script to start in on a busy machine.
IMPATIENT = Budgets(idle_wall_seconds=0.4)
DAWDLING = Budgets(idle_wall_seconds=2.5)
Delay = Callable[[policy_pb2.GenerateRequest], float]


@pytest_asyncio.fixture(loop_scope="session")
async def services(sandbox: str, stand_ins: Backends) -> AsyncIterator[Services]:
    sandboxes, executors = SandboxFleet([sandbox]), PolicyFleet([stand_ins.target])
    await sandboxes.connect()
    await executors.connect()
    admission = Admission(sandboxes)
    async with MathGrader() as grader:
        yield Services(admission, executors, executors, Judge(TaskGrader(grader, admission)))


async def rolled(
    services: Services,
    stand_ins: Backends,
    budgets: Budgets,
    delay: Delay,
    scripts: Sequence[str] = (ENSEMBLE, DEBATE, LOOP, SINGLE),
    replies: Sequence[str] = REPLIES,
) -> Tree:
    """One design of each script, twice executed, with replies that are a function of the conversation and its seed."""

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        await asyncio.sleep(delay(request))
        return random.Random(request.sampling.seed).choice(replies)

    stand_ins.policy.reply = reply
    stand_ins.designer.scripts[TASK.question] = list(scripts)
    plan = RolloutPlan(
        scope="run",
        step=1,
        seed=7,
        designs=len(scripts),
        executions=2,
        max_attempts=1,
        designer_sampling=common_pb2.Sampling(temperature=1.0, max_tokens=64),
        executor_sampling=common_pb2.Sampling(temperature=1.0, max_tokens=64),
        designer_version=None,
        executor_version=None,
        budgets=budgets,
        delivery_instruction=DeliveryInstruction(),
        rewards=RewardConfig(),
    )
    return await roll_task(TASK, plan, services, Silent(), Timeline())


def substance(tree: Tree) -> list[object]:
    """All of a tree but what was measured by a clock, and in which order branches of a fan-out were visited."""
    nodes: list[object] = []
    for node in tree.nodes:
        payload = node.payload
        if isinstance(payload, ExecutionPayload):
            payload = dataclasses.replace(payload, cpu_seconds=0, wall_seconds=0, waiting_seconds=0, visits=())
        tokens = None if node.tokens is None else (node.tokens.token_ids.tolist(), node.tokens.run_lengths.tolist())
        nodes.append((node.id, node.parent_id, node.attempt, payload, tokens))
    return nodes


def at_once(request: policy_pb2.GenerateRequest) -> float:
    return 0.0


@pytest.mark.parametrize("budgets", BUDGETS.values(), ids=BUDGETS)
async def test_an_engine_that_is_20_times_slower_gives_the_same_rewards_refusals_and_transcripts(
    services: Services, stand_ins: Backends, budgets: Budgets
) -> None:
    def delay(factor: float) -> Delay:
        jitter = random.Random(factor)
        return lambda request: factor * jitter.uniform(0.001, 0.004)

    fast = await rolled(services, stand_ins, budgets, delay(1))
    slow = await rolled(services, stand_ins, budgets, delay(20))
    assert substance(fast) == substance(slow)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(["A", "B", "C"]), budget=st.sampled_from(list(BUDGETS)))
async def test_whichever_member_of_an_ensemble_is_faster_the_tree_is_the_same(
    services: Services, stand_ins: Backends, order: list[str], budget: str
) -> None:
    def delay(request: policy_pb2.GenerateRequest) -> float:
        agent = request.conversation_id.split("/")[1].partition("#")[0]
        return 0.03 * order.index(agent) if agent in order else 0.0

    apart = await rolled(services, stand_ins, BUDGETS[budget], delay)
    assert substance(apart) == substance(await rolled(services, stand_ins, BUDGETS[budget], at_once))


def executions(tree: Tree) -> list[ExecutionPayload]:
    return [node.payload for node in tree.of_kind(NodeKind.EXECUTION) if isinstance(node.payload, ExecutionPayload)]


async def test_what_the_budgets_do_here_is_what_they_are_for(services: Services, stand_ins: Backends) -> None:
    few = await rolled(services, stand_ins, BUDGETS["few calls"], at_once)
    overdrawn = [each for each in executions(few) if "overdrawn" in each.flags]
    assert 0 < len(overdrawn) < 8
    assert {term.value for each in overdrawn for term in each.terms} == {0.0}
    assert all(each.reason.startswith("overdrawn: more than 5 agent calls") for each in overdrawn)
    ample = await rolled(services, stand_ins, BUDGETS["ample"], at_once)
    assert not any("overdrawn" in each.flags for each in executions(ample))
    refused = await rolled(services, stand_ins, BUDGETS["few turns"], at_once)
    assert any("refused_turns" in each.flags for each in executions(refused))


async def test_the_wall_that_passes_while_a_script_waits_for_turns_is_ours_and_makes_no_reward(
    services: Services, stand_ins: Backends
) -> None:
    with pytest.raises(TaskDroppedError) as dropped:
        await rolled(services, stand_ins, IMPATIENT, lambda request: 60.0, [SINGLE])
    assert dropped.value.fault.service == "executor"
    assert "waiting for turns" in dropped.value.fault.text
    assert "budgets.idle_wall_seconds" in dropped.value.fault.remedy


async def test_the_wall_that_a_script_sleeps_away_is_the_policys(services: Services, stand_ins: Backends) -> None:
    tree = await rolled(services, stand_ins, IMPATIENT, at_once, [SLEEP])
    for each in executions(tree):
        assert (each.status, each.success) == (ExecutionStatus.POLICY_FAULT, False)
        assert "wall_limit" in each.flags
        assert {term.value for term in each.terms if term.name == "success"} == {0.0}
    assert len(executions(tree)) == 2


@pytest.mark.parametrize(
    ("script", "slow_turn"), [(SLEEPS_AFTER, 6.0), (SLEEPS_BEFORE, 60.0)], ids=["after its turn", "before its turn"]
)
async def test_a_script_that_sleeps_too_long_is_worth_nothing_however_fast_the_engine(
    services: Services, stand_ins: Backends, script: str, slow_turn: float
) -> None:
    """With the fast engine it ends by itself within what the sandbox waits for it, and with the slow one it does not."""
    fast = executions(await rolled(services, stand_ins, DAWDLING, at_once, [script], REPLIES[:1]))
    slow = executions(await rolled(services, stand_ins, DAWDLING, lambda request: slow_turn, [script], REPLIES[:1]))
    assert fast[0].wall_seconds < 10.0 <= slow[0].wall_seconds
    assert [judged(each) for each in fast] == [judged(each) for each in slow]
    for each in fast:
        assert each.status is ExecutionStatus.POLICY_FAULT
        assert (each.success, each.result, each.answer, each.flags) == (False, "", "", ("wall_limit",))
        assert "took 2.5 s or more by itself" in each.reason
        assert {term.value for term in each.terms} == {0.0}


def judged(payload: ExecutionPayload) -> object:
    return (payload.status, payload.reason, payload.result, payload.answer, payload.terms, payload.flags)
