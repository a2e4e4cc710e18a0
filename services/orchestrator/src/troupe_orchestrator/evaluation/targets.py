"""Whom a job evaluates: what a request names, resolved when the job is created, and ready while its items are run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from troupe.v1 import evaluation_pb2, policy_pb2
from troupe_contracts.channel import connect
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound, describe

from troupe_orchestrator.engines import Engines
from troupe_orchestrator.evaluation.best import best_validation
from troupe_orchestrator.evaluation.fixed_designs import FixedDesigns, asks_designer, same_for_all, voting
from troupe_orchestrator.evaluation.lending import Lending, Probed, weight_holders
from troupe_orchestrator.evaluation.stored_designs import stored_designs
from troupe_orchestrator.evaluation.stored_weights import read_stored_weights
from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.settings import targets as split_targets
from troupe_orchestrator.store.checkpoints import list_checkpoints
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord
from troupe_orchestrator.store.runs import RunRecord, get_run
from troupe_orchestrator.training.policies import parse_version, version_text
from troupe_orchestrator.training.record import origin_of

_ANSWER_SECONDS = 10.0
_DESIGNER_SERVICE = "troupe.v1.Designer"


@dataclass(frozen=True, slots=True)
class Served:
    """A target that is ready."""

    services: Services
    versions: dict[str, str]
    """Role to `lineage:number`; without the designer where none has written the scripts."""
    designs: FixedDesigns | None = None
    """In place of the designer; None where it is asked."""


async def resolve(target: evaluation_pb2.EvalTarget, database: Database, engines: Engines) -> evaluation_pb2.EvalTarget:
    """The target with checkpoints as folders; what is named is there and fits.

    Raises:
        InvalidArgument: a bad field.
        NotFound: no such run or checkpoint.
        FailedPrecondition: it cannot be evaluated here.
    """
    match target.WhichOneof("target"):
        case "checkpoint":
            return evaluation_pb2.EvalTarget(checkpoint=await _resolved(target.checkpoint, database, engines))
        case "endpoint":
            await _check_endpoint(target.endpoint)
            return target
        case _:
            return evaluation_pb2.EvalTarget(current=evaluation_pb2.CurrentTarget())


def uses_own_engines(request: evaluation_pb2.CreateEvalJobRequest) -> bool:
    """Whether a job needs the engines of this deployment, and so the time between two steps of a run."""
    endpoint = request.target.endpoint
    return not (endpoint.executor and (endpoint.designer or not asks_designer(request)))


@contextlib.asynccontextmanager
async def served(
    request: evaluation_pb2.CreateEvalJobRequest,
    target: evaluation_pb2.EvalTarget,
    record: EvalRecord,
    database: Database,
    engines: Engines,
) -> AsyncIterator[Served]:
    """The target while the block runs. Whoever enters it holds the boundary, unless only endpoints are used.

    Args:
        target: as resolved.
        record: the job's.

    Raises:
        FailedPrecondition, NotFound: it is not there any more.
        WeightSyncError, GiveBackError: the engines could not be brought to its weights, or back.
        grpc.RpcError: it does not answer.
    """
    lending = Lending(database, engines)
    async with contextlib.AsyncExitStack() as stack:
        if uses_own_engines(request):
            await lending.give_back()
        if target.WhichOneof("target") == "checkpoint":
            lent = await _read(target.checkpoint, database)
            stack.push_async_callback(lending.give_back)
            await lending.lend(record.job_id, lent)
        executor, designer = engines.executor, engines.designer
        services = engines.services
        if target.endpoint.executor:
            executor = PolicyFleet(split_targets(target.endpoint.executor))
            # Who went out of rotation is asked for no longer than the job runs.
            stack.push_async_callback(executor.close)
            services = replace(services, executors=executor)
        if target.endpoint.designer:
            designer = PolicyFleet([target.endpoint.designer], "designer")
            stack.push_async_callback(designer.close)
            services = replace(services, designers=designer)
        versions, designs = {"executor": await _version(executor, engines)}, None
        if asks_designer(request):
            versions["designer"] = await _version(designer, engines)
        elif request.designs_of:
            designs, versions["designer"] = await stored_designs(request.designs_of, database)
        elif request.mode == evaluation_pb2.EVAL_MODE_MAJORITY:
            designs = voting(record.votes or request.votes)
        else:
            designs = same_for_all(request)
        yield Served(services, versions, designs)


async def _version(fleet: PolicyFleet, engines: Engines) -> str:
    """The one version that a fleet serves. Engines of ours are waited for while none serves, as by turns; whoever names an
    endpoint is told at once.
    """
    own = fleet in (engines.executor, engines.designer)
    described = await (fleet.described() if own else fleet.describe())
    versions = sorted({version_text(info.version) for info in described})
    if len(versions) > 1:
        raise FailedPrecondition("target", f"its replicas serve {versions}: items of several versions are not mixed")
    return versions[0]


async def _resolved(
    checkpoint: evaluation_pb2.CheckpointTarget, database: Database, engines: Engines
) -> evaluation_pb2.CheckpointTarget:
    named = [bool(checkpoint.uris), bool(checkpoint.step), checkpoint.best, checkpoint.start]
    if sum(named) != 1 or bool(checkpoint.run_id) == bool(checkpoint.uris):
        raise InvalidArgument(
            "target.checkpoint", "names neither a run with one of `step`, `best` and `start`, nor `uris`"
        )
    holders = await weight_holders(engines)
    resolved = evaluation_pb2.CheckpointTarget(run_id=checkpoint.run_id, step=checkpoint.step, uris=checkpoint.uris)
    run = await get_run(database, checkpoint.run_id) if checkpoint.run_id else None
    if checkpoint.run_id and run is None:
        raise NotFound("run", checkpoint.run_id)
    if run is not None and checkpoint.start:
        resolved = _start(run)
    elif checkpoint.best:
        best = await best_validation(database, checkpoint.run_id)
        if best is None:
            raise FailedPrecondition(checkpoint.run_id, "has no validated step: name a step")
        resolved.step = best.step
    if resolved.run_id:
        for policy_id, saved in (await _saved(database, resolved)).items():
            resolved.uris[policy_id] = saved["uri"]
    if holders.keys() != set(resolved.uris):
        raise FailedPrecondition(
            "target.checkpoint", f"has weights of {sorted(resolved.uris)}, the engines serve {sorted(holders)}"
        )
    return resolved


def _start(run: RunRecord) -> evaluation_pb2.CheckpointTarget:
    """The weights that a run began with: its parent's, of which a fork has a checkpoint, or its learners' models."""
    began = origin_of(run.provenance)
    if began is None:
        raise FailedPrecondition(run.run_id, "has no record of what it began with: name the folder of the weights")
    if began.fork is not None:
        return evaluation_pb2.CheckpointTarget(run_id=run.run_id, step=began.fork.step)
    return evaluation_pb2.CheckpointTarget(uris={policy.policy_id: policy.model for policy in began.policies})


async def _saved(database: Database, checkpoint: evaluation_pb2.CheckpointTarget) -> dict[str, dict[str, Any]]:
    """The manifest of a run's checkpoint."""
    known = dict(await list_checkpoints(database, checkpoint.run_id))
    if checkpoint.step not in known:
        raise NotFound(
            "checkpoint",
            f"{checkpoint.run_id}@{checkpoint.step}",
            f"run {checkpoint.run_id} has checkpoints of steps {sorted(known)}",
        )
    manifest: dict[str, dict[str, Any]] = known[checkpoint.step]
    return manifest


async def _read(checkpoint: evaluation_pb2.CheckpointTarget, database: Database) -> dict[str, Probed]:
    """Names and digests of all that is to be loaded."""
    saved = await _saved(database, checkpoint) if checkpoint.run_id else {}
    lent = {}
    for policy_id, uri in checkpoint.uris.items():
        known = saved.get(policy_id, {})
        version = parse_version(known["version"]) if "version" in known else None
        weights = await asyncio.to_thread(read_stored_weights, uri, policy_id, version)
        probes = [policy_pb2.Probe(**probe) for probe in known.get("probes", [])]
        lent[policy_id] = Probed(weights, probes)
    return lent


async def _check_endpoint(endpoint: evaluation_pb2.EndpointTarget) -> None:
    if not endpoint.executor and not endpoint.designer:
        raise InvalidArgument("target.endpoint", "names neither an executor nor a designer")
    for replica in split_targets(endpoint.executor):
        await _check_answers(replica, "target.endpoint.executor", "troupe.v1.Policy")
    if endpoint.designer:
        await _check_answers(endpoint.designer, "target.endpoint.designer", _DESIGNER_SERVICE)


async def _check_answers(target: str, field: str, service: str) -> None:
    """Refuse an endpoint that is not there, or is something else."""
    async with connect(target) as channel:
        try:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=service)
            status = (await health.Check(request, timeout=_ANSWER_SECONDS)).status
        except grpc.RpcError as error:
            raise FailedPrecondition(
                field, f"{target} does not say that it serves {service}: {describe(error)}"
            ) from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise FailedPrecondition(field, f"{service} at {target} is {name}")
