"""What each service of a deployment says of itself: health, versions, isolation, capacity."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from troupe.v1 import (
    learner_pb2,
    learner_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from troupe_contracts.channel import connect
from troupe_contracts.errors import describe
from troupe_contracts.identity import Identity

from troupe_client.render_eval import version
from troupe_client.run_report import MOST, report, told_of
from troupe_client.state import Deployment, ServiceState
from troupe_client.wiring import DESIGNER, EXECUTOR, LEARNERS, SANDBOX

_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Report:
    """One service, as it answered."""

    service: str
    pid: int
    target: str
    health: str
    serves: str = ""
    capacity: str = ""
    restarts: str = ""
    """How often it was started again and why last; empty if it never ended."""


async def probe(deployment: Deployment, identity: Identity) -> list[Report]:
    """A report of each service, in the order in which they were started."""
    return list(await asyncio.gather(*(_probe(name, state, identity) for name, state in deployment.services.items())))


async def _probe(name: str, state: ServiceState, identity: Identity) -> Report:
    return replace(await _answer(name, state, identity), restarts=_restarts(state))


def _restarts(state: ServiceState) -> str:
    if not state.restarts:
        return ""
    times = "once" if state.restarts == 1 else f"{state.restarts} times"
    return f"started again {times}: {state.ended}; see {state.log}"


async def _answer(name: str, state: ServiceState, identity: Identity) -> Report:
    if not state.serves and (state.identity.alive() or state.restarts):
        return Report(name, state.pid, state.target, "starting")
    if not state.identity.alive():
        return Report(name, state.pid, state.target, "ended", serves=f"see {state.log}")
    async with connect(state.target, identity) as channel:
        try:
            serves, capacity = await details(name, state.policy_id, channel)
            return Report(name, state.pid, state.target, await _health(channel), serves, capacity)
        except grpc.RpcError as error:
            return Report(name, state.pid, state.target, "error", serves=describe(error))


async def _health(channel: grpc.aio.Channel) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()


async def details(name: str, policy_id: str, channel: grpc.aio.Channel) -> tuple[str, str]:
    """What a service serves, and how much at once.

    Args:
        policy_id: of a learner; empty asks for the only one that it has.
    """
    if name in (EXECUTOR, DESIGNER):
        policy: Any = policy_pb2_grpc.PolicyStub(channel)
        return _policy(await policy.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_SECONDS))
    if name == SANDBOX:
        sandbox: Any = sandbox_pb2_grpc.SandboxStub(channel)
        return _isolation(await sandbox.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=_SECONDS))
    if name in LEARNERS:
        learner: Any = learner_pb2_grpc.LearnerStub(channel)
        asked = learner_pb2.GetLearnerRequest(policy_id=policy_id)
        return _learner(await learner.GetLearner(asked, timeout=_SECONDS))
    training: Any = training_pb2_grpc.TrainingStub(channel)
    page = await training.ListRuns(training_pb2.ListRunsRequest(page_size=1000), timeout=_SECONDS)
    chosen = told_of(page.runs)
    told = [
        await training.GetRun(training_pb2.GetRunRequest(run_id=run_id), timeout=_SECONDS) for run_id in chosen[:MOST]
    ]
    return report(told, len(chosen) - len(told)), ""


def _policy(policy: policy_pb2.PolicyInfo) -> tuple[str, str]:
    state = policy_pb2.UpdateState.Name(policy.state).removeprefix("UPDATE_STATE_").lower()
    where = f"at {policy.owner}" if policy.owner else policy.engine
    serves = f"{policy.policy_id} {version(policy.version)} ({state}), {where}"
    return serves, f"{policy.in_flight} of {policy.capacity} generations under way"


def _isolation(report: sandbox_pb2.IsolationReport) -> tuple[str, str]:
    active = [layer.name for layer in report.layers if layer.state == sandbox_pb2.LAYER_STATE_ACTIVE]
    missing = [layer.name for layer in report.layers if layer.state != sandbox_pb2.LAYER_STATE_ACTIVE]
    serves = f"profile {report.profile}: {', '.join(active) or 'nothing'} in force"
    if missing:
        serves += f"; missing: {', '.join(missing)}"
    if around := [layer.name for layer in report.outer_layers if layer.state == sandbox_pb2.LAYER_STATE_ACTIVE]:
        serves += f"; around it: {', '.join(around)}"
    return serves, (
        f"{report.workflows_running} of {report.workflow_slots} scripts, "
        f"{report.tests_running} of {report.test_slots} tests under way"
    )


def _learner(learner: learner_pb2.LearnerInfo) -> tuple[str, str]:
    gang = learner_pb2.GangState.Name(learner.state).removeprefix("GANG_STATE_").lower()
    bound = f", run {learner.run_id} after step {learner.applied_step}" if learner.run_id else ""
    serves = f"{learner.policy_id} {version(learner.version)} ({gang}){bound}, {learner.engine}"
    return serves + (f": {learner.detail}" if learner.detail else ""), f"{learner.ranks} ranks"
