"""What an orchestrator exports while it trains, and whose its services' logs say that their work is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import structlog
from orchestrated.models import right_unless_guessed
from orchestrated.world import math_task
from prometheus_client import REGISTRY
from troupe.v1 import policy_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")
TASKS = [math_task(f"task-{number}") for number in range(4)]


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_a_run_its_services_and_the_store_are_exported(open_world) -> None:
    async with open_world(learner=True) as world:
        taken: list[float | None] = []

        def reply(request: policy_pb2.GenerateRequest) -> str:
            taken.append(value("troupe_seats_taken", service="sandbox", kind="workflows"))
            return right_unless_guessed(request)

        world.backends.policy.reply = reply
        assert value("troupe_replicas", service="sandbox") == 1
        assert value("troupe_replicas_serving", service="executor") == 1
        assert value("troupe_seats", service="sandbox", kind="workflows") == 4
        assert (value("troupe_store_free_bytes") or 0) > 0
        committed = value("troupe_steps_committed_total") or 0
        await world.run(world.config(TASKS), "exported")
        assert value("troupe_steps_committed_total") == committed + 2
        assert max(each or 0 for each in taken) >= 1
        assert value("troupe_seats_taken", service="sandbox", kind="workflows") == 0
        assert value("troupe_admission_waiting", kind="executions") == 0
        assert value("troupe_policy_current_version", policy="scripted", lineage=_lineage(world)) == 2
    assert value("troupe_replicas", service="sandbox") is None


async def test_an_orchestrator_without_services_exports_its_store_and_which_runs_wait_for_somebody(open_world) -> None:
    async with open_world(learner=True) as world:
        world.backends.policy.reply = _unavailable
        await world.run(world.config(TASKS), "waits")
    async with open_world(learner=True):
        assert value("troupe_run_state", run="waits", state="paused") == 1


async def test_each_turn_says_whose_it_is_in_the_log_of_whoever_serves_it(open_world) -> None:
    bound: list[Mapping[str, Any]] = []

    def reply(request: policy_pb2.GenerateRequest) -> str:
        bound.append(structlog.contextvars.get_contextvars())
        return right_unless_guessed(request)

    async with open_world(learner=True) as world:
        world.backends.policy.reply = reply
        await world.run(world.config(TASKS), "traced")
    assert {each["run"] for each in bound} == {"traced"}
    assert {each["step"] for each in bound} == {"1", "2"}
    executions = {each["execution"]: each for each in bound}
    assert len(executions) == len(bound)
    traces = {(each["step"], each["task"]): each["trace"] for each in bound}
    assert len(set(traces.values())) == len(traces) == 4
    assert all(each["trace"] == traces[each["step"], each["task"]] for each in bound)


def _unavailable(request: policy_pb2.GenerateRequest) -> str:
    raise AssertionError("no turn is served")


def _lineage(world: Any) -> str:
    return str(world.backends.policy.weights.version.lineage)
