"""Engines that fail in a run: no fault is paid for, none leaves a trace in a tree, each is named with its remedy."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from orchestrated.faults import (
    ONE_STEP,
    TASKS,
    LostTogether,
    Once,
    check_only_what_was_said,
    faults,
    metrics,
    rollout,
    trees,
)
from orchestrated.models import question_of, right_unless_guessed
from orchestrated.world import Backends, backends, math_task, world
from troupe.v1 import common_pb2, policy_pb2, solver_pb2, training_pb2
from troupe_contracts.errors import Exhausted, FailedPrecondition, Internal, InvalidArgument, ServiceError, Unavailable
from troupe_orchestrator.tree import NodeKind

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("restarting"),
        Internal("a defect"),
        Exhausted("no room", 0.01),
        FailedPrecondition("replica", "loads"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_engine_that_fails_once_costs_nobody_anything(
    open_world, stand_ins: Backends, error: ServiceError
) -> None:
    stand_ins.policy.reply = Once("task-1", error)
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert metrics(events)["success"] == 0.5
        assert metrics(events)["tasks_dropped"] == 0
        check_only_what_was_said(world, 4)
    told = faults(events)
    if isinstance(error, Exhausted):
        # It had no room for a moment: that is no fault.
        assert (told, metrics(events)["faults"]) == ([], 0)
        return
    assert [condition.message.split(":")[0] for condition in told] == ["executor"]
    assert error.message in told[0].message
    assert told[0].remedy
    assert (metrics(events)["faults"], metrics(events)["faults/executor"]) == (1, 1)
    assert any(event.condition == told[0] for event in run.recent_events)


async def test_what_an_engine_refuses_for_good_drops_its_task_and_the_drop_is_seen_by_length(
    open_world, stand_ins: Backends
) -> None:
    long = math_task("long", question="What is 6 * 7? " + "Think. " * 40)

    def reply(request: policy_pb2.GenerateRequest) -> str:
        if "Think." in question_of(request):
            raise InvalidArgument("messages", "is too odd")
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    async with open_world(learner=True) as world:
        events = await world.run(world.config([*TASKS, long], **ONE_STEP, rollout=rollout(5)))
        check_only_what_was_said(world, 4)
        seen = metrics(events)
        assert (seen["tasks_dropped"], seen["drop_rate/prompt_lt_128"], seen["drop_rate/prompt_lt_512"]) == (1, 0, 1)
        assert "too odd" in faults(events)[0].message
        assert not any(b"Think." in bytes(s.token_ids) for b in stand_ins.learner.batches.values() for s in b)


async def test_an_engine_that_hangs_is_a_fault_at_the_deadline_of_a_turn(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = hanging = Once("task-1", lambda: asyncio.sleep(30))
    async with open_world(learner=True, turn_seconds=0.5) as world:
        events = await world.run(world.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        assert hanging.failed == 1
        check_only_what_was_said(world, 4)
        (told,) = faults(events)
        assert "executor: DEADLINE_EXCEEDED" in told.message
        assert "hangs" in told.remedy


async def test_an_engine_that_is_restarted_in_a_step_is_brought_to_the_steps_weights_before_it_is_used(
    open_world, stand_ins: Backends
) -> None:
    weights = stand_ins.policy.weights

    async def restart() -> None:
        # As after a kill: the call is lost, and what comes back has the weights of its folder.
        weights.version = common_pb2.PolicyVersion(lineage="start", number=0)
        raise Unavailable("connection reset")

    async with open_world(learner=True) as world:

        def reply(request: policy_pb2.GenerateRequest) -> str | Awaitable[str]:
            if weights.version.number == 1 and weights.committed == [1]:
                return restart()  # type: ignore[return-value]
            return right_unless_guessed(request)

        stand_ins.policy.reply = reply
        events = await world.run(world.config(TASKS))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert weights.committed == [1, 1, 2]
        check_only_what_was_said(world, 2, step=2)
        versions = {
            version
            for tree in trees(world, 2)
            for node in tree.of_kind(NodeKind.CONVERSATION)
            if node.tokens is not None
            for version in node.tokens.run_versions
            if version
        }
        assert versions == {"start:1"}
        assert any("connection reset" in condition.message for condition in faults(events))


async def test_an_engine_that_is_restarted_after_the_orchestrator_was_is_brought_to_the_steps_weights(
    open_world, stand_ins: Backends
) -> None:
    weights, waiting = stand_ins.policy.weights, asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        if weights.version.number == 0:
            return right_unless_guessed(request)
        waiting.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def restart() -> str:
        weights.version = common_pb2.PolicyVersion(lineage="start", number=0)
        raise Unavailable("connection reset")

    stand_ins.policy.reply = waits
    async with open_world(learner=True) as world:
        request = training_pb2.CreateRunRequest(run_id="run", config=world.config(TASKS))
        await world.training.CreateRun(request)
        await asyncio.wait_for(waiting.wait(), 30)
    stand_ins.policy.reply = lambda request: (
        restart() if weights.version.number == 1 and weights.committed == [1] else right_unless_guessed(request)
    )
    async with open_world(learner=True, outage_seconds=1.0) as world:
        await world.run_events()
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert weights.committed == [1, 1, 2]


async def test_an_engine_that_comes_back_as_another_model_stays_out_and_the_run_pauses_by_name(
    open_world, stand_ins: Backends
) -> None:
    def replaced(request: policy_pb2.GenerateRequest) -> str:
        stand_ins.policy.weights.tokenizer_digest = "x" * 64
        raise Unavailable("gone")

    stand_ins.policy.reply = replaced
    async with open_world(learner=True, outage_seconds=0.3) as world:
        await world.run(world.config(TASKS, **ONE_STEP))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "tokenizer_digest" in run.reason
        assert "start it from the same model" in run.reason
        assert stand_ins.learner.applied == []


async def test_solving_while_new_weights_are_loaded_waits_for_them(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = loading = Once("", FailedPrecondition("replica", "new weights are being loaded"))
    async with open_world() as world:
        request = solver_pb2.SolveRequest(question="What is 6 * 7?", task_type=common_pb2.TASK_TYPE_MATH)
        *_, last = [event async for event in world.solver.Solve(request, timeout=30)]
        assert (last.answer.status, last.answer.answer, loading.failed) == ("ok", "42", 1)


async def test_a_designer_with_an_engine_of_its_own_that_nobody_trains_is_refused_by_name(
    tmp_path: Path, sandbox: str, stand_ins: Backends
) -> None:
    async with backends() as own:
        with pytest.raises(Exception, match="TROUPE_DESIGNER_LEARNER"):
            async with world(tmp_path, stand_ins, sandbox, learner=True, designer=own.target):
                pass
        async with world(tmp_path, stand_ins, sandbox, designer=own.target) as evaluating:
            job = await evaluating.evaluate(math_task("evaluated"))
            assert job.summary.success == 1.0
            assert len(own.designer.requests) == 1


async def test_an_engine_and_its_learner_that_are_lost_together_cost_the_rollout_and_no_task(
    open_world, stand_ins: Backends
) -> None:
    losing = LostTogether(stand_ins, lambda request: request.version.number == 1)
    two_steps = {"steps": 2, "stages": [{"train": "both", "steps": 2}]}
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS, **two_steps, rollout=rollout(4)))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        losing.check(events)
        assert metrics(events, 2)["tasks_dropped"] == 0
        check_only_what_was_said(world, 4, step=2)
