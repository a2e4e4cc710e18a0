"""The orchestrator shows its credential to the services of its settings, and to nobody that a client names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from orchestrated.learner import StandInLearner
from orchestrated.models import SINGLE, StandInDesigner, StandInPolicy, Weights
from orchestrated.world import Backends, math_task, world
from troupe.v1 import designer_pb2_grpc, evaluation_pb2, learner_pb2_grpc, policy_pb2_grpc, training_pb2
from troupe_contracts.access import Role
from troupe_contracts.identity import NOBODY, Identity, assume
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_contracts.tokens import line_for, new_token

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Path]:
    """What services are given that take the orchestrator's token, which is this process's own."""
    token = new_token()
    file = tmp_path / "tokens"
    file.write_text(line_for(Role.ORCHESTRATOR, token))
    assume(Identity(token))
    yield file
    assume(NOBODY)


@contextlib.asynccontextmanager
async def guarded(known: Path) -> AsyncIterator[Backends]:
    """Stand-ins that ask for a token."""
    weights = Weights()
    parts = Backends(StandInPolicy(weights), StandInDesigner(weights), StandInLearner())
    parts.designer.otherwise = [SINGLE]

    def register(server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServicer_to_server(parts.policy, server)
        designer_pb2_grpc.add_DesignerServicer_to_server(parts.designer, server)
        learner_pb2_grpc.add_LearnerServicer_to_server(parts.learner, server)

    services = ("troupe.v1.Policy", "troupe.v1.Designer", "troupe.v1.Learner")
    parts.running = await start(ServiceSettings(tokens=known), register, services)
    yield parts
    await parts.stop()


async def test_a_run_and_a_job_reach_services_that_ask_for_the_orchestrators_token(
    tmp_path: Path, known: Path, sandbox: str
) -> None:
    async with guarded(known) as parts, world(tmp_path / "world", parts, sandbox, learner=True) as opened:
        await opened.run(opened.config(TASKS))
        assert (await opened.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        job = await opened.evaluate(*TASKS)
        assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason


async def test_an_endpoint_that_a_client_names_is_shown_no_credential(
    tmp_path: Path, known: Path, sandbox: str
) -> None:
    async with (
        guarded(known) as ours,
        guarded(known) as named,  # it would take the orchestrator's token, if it were shown one
        world(tmp_path / "world", ours, sandbox) as opened,
    ):
        endpoint = evaluation_pb2.EndpointTarget(executor=named.target, designer=named.target)
        job = await opened.evaluate(*TASKS, target=evaluation_pb2.EvalTarget(endpoint=endpoint))
        assert job.state == evaluation_pb2.EVAL_STATE_FAILED
        assert "UNAUTHENTICATED" in job.reason
        assert "the call shows none" in job.reason
        assert (named.policy.requests, named.designer.requests) == ([], [])
