"""Bringing every replica of a policy to given weights, the learner's or stored ones: begin, stage, commit, abort.

The bytes go from their source to the replicas; only names and digests pass through here. A version is current when every
replica in rotation has it; one that cannot be brought there is taken out of rotation, and brought there when it can be. A
laggard is not waited for either: once half of the replicas have the version, the others get as long again, and half a
minute at least. Replicas that are brought back by themselves stop for a sync, which brings everybody to something newer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from troupe.v1 import common_pb2, policy_pb2
from troupe_contracts.errors import describe

from troupe_orchestrator.fleet import PolicyFleet, Replica
from troupe_orchestrator.rotation import NotReadyError, WeightsGoneError
from troupe_orchestrator.training.learner import LearnerClient, LearnerError

logger = structlog.get_logger()
_PHASE_SECONDS = 300.0
_ASK_SECONDS = 10.0
"""A replica that hangs is left behind, not waited for."""
_ATTEMPTS = 2
_LEAST_PATIENCE_SECONDS = 30.0
"""What the slower half of the replicas gets at least, once the other half has the version."""
_Result = policy_pb2.CommitUpdateResponse | None | str
"""Of one replica: None where it was found with the version, a text why it does not have it."""
_ENDING: Final[set[asyncio.Task[_Result]]] = set()
"""Updates of laggards that are being aborted; nobody waits for them."""


class WeightSyncError(RuntimeError):
    """No replica could be brought to the weights."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did."""

    version: common_pb2.PolicyVersion
    seconds: float
    paused_seconds: float
    probe_mean_error: float | None
    probe_max_error: float | None
    """Of the worst replica; None where each was found with the version: loaded before, or by an update of which
    nothing was heard."""
    failures: tuple[str, ...]
    """Replicas that were taken out of rotation, with the remote text."""


async def sync_weights(
    learner: LearnerClient,
    fleet: PolicyFleet,
    fence: common_pb2.Fence,
    probe_sequences: Sequence[Sequence[int]],
    probe_bound: float,
) -> SyncReport:
    """Load the learner's current weights into every replica that does not have them.

    Raises:
        WeightSyncError: not one replica has them afterwards.
        NoMembersError: there is none.
    """
    manifest = await learner.manifest()
    probes = await learner.probes(probe_sequences, manifest.version) if probe_sequences else []
    source = policy_pb2.WeightSource(learner_target=learner.target)

    async def still_there() -> None:
        await _has(learner, manifest.version)

    return await load_weights(fleet, manifest, source, fence, probes, probe_bound, still_there)


def know_way_back(
    learner: LearnerClient,
    fleet: PolicyFleet,
    fence: common_pb2.Fence,
    probe_sequences: Sequence[Sequence[int]],
    probe_bound: float,
) -> None:
    """Have a replica that comes, or comes back, brought to the learner's weights for as long as those are what is served:
    an orchestrator that was restarted has synced nothing yet, and may have no run that does.
    """

    async def bring_up(replica: Replica) -> None:
        try:
            manifest = await learner.manifest()
            probes = await learner.probes(probe_sequences, manifest.version)
        except LearnerError as error:
            raise NotReadyError(str(error)) from error
        _expect(manifest, fleet.current)
        source = policy_pb2.WeightSource(learner_target=learner.target)
        result = await _bring_up(replica, source, manifest, fence, probes, probe_bound)
        if isinstance(result, str):
            raise NotReadyError(result)

    if fleet.current is not None:
        fleet.synced(fleet.current, bring_up)


async def _has(learner: LearnerClient, version: common_pb2.PolicyVersion) -> None:
    """
    Raises:
        WeightsGoneError: the learner has others. One that does not answer may have them yet.
    """
    with suppress(LearnerError):
        _expect(await learner.manifest(), version)


def _expect(manifest: policy_pb2.WeightManifest, version: common_pb2.PolicyVersion | None) -> None:
    # No name is given twice: a learner that has other weights never has those again.
    if manifest.version != version:
        raise WeightsGoneError(f"the learner of policy {manifest.policy_id} has other weights: it waits for a sync")


async def _always_there() -> None:
    """Of weights that are stored."""


async def load_weights(
    fleet: PolicyFleet,
    manifest: policy_pb2.WeightManifest,
    source: policy_pb2.WeightSource,
    fence: common_pb2.Fence,
    probes: list[policy_pb2.Probe],
    probe_bound: float,
    still_there: Callable[[], Awaitable[None]] = _always_there,
) -> SyncReport:
    """Load weights into every replica that does not have them. Of those that have them none may be ready yet.

    Args:
        still_there: asked where a replica that comes later cannot be brought to them; raises WeightsGoneError where the
            source has others by then.

    Raises:
        WeightSyncError: not one replica has them afterwards.
        NoMembersError: there is none.
    """
    begun = time.perf_counter()

    async def bring_up(replica: Replica) -> None:
        result = await _bring_up(replica, source, manifest, fence, probes, probe_bound)
        if isinstance(result, str):
            await still_there()
            raise NotReadyError(result)

    async with fleet.updating:
        # Who comes or goes meanwhile is not among these. One that is not ready is brought there when it answers: a step
        # does not wait for an engine that starts.
        replicas = fleet.ready() or fleet.replicas()
        if not replicas:
            raise fleet.nobody()
        halted = await fleet.halt()
        try:
            results = await _without_laggards(
                [_bring_up(replica, source, manifest, fence, probes, probe_bound) for replica in replicas]
            )
        except BaseException:
            for replica in halted:
                fleet.expect(replica, "was being brought back when a load of weights was cut short")
            raise
        committed = [result for result in results if not isinstance(result, str)]
        if committed:
            # Whoever is left behind, or comes back later, is brought here too.
            fleet.synced(manifest.version, bring_up)
    for replica in fleet.replicas():
        if replica not in replicas and (committed or replica in halted):
            fleet.expect(replica, "was not ready when weights were loaded")
    failures = []
    for replica, result in zip(replicas, results, strict=True):
        if replica not in fleet.replicas():
            continue
        if not isinstance(result, str):
            fleet.put_back(replica)
            continue
        failures.append(f"{replica.target}: {result}")
        if committed or replica in halted:
            # Also one that an earlier sync, which no replica took, has taken out.
            fleet.expect(replica, result)
        else:
            fleet.take_out(replica, result)
    if not committed:
        raise WeightSyncError(f"no replica of policy {manifest.policy_id} took the update: {'; '.join(failures)}")
    loaded = [result for result in committed if result is not None]
    return SyncReport(
        version=manifest.version,
        seconds=time.perf_counter() - begun,
        paused_seconds=max((result.paused_seconds for result in loaded), default=0.0),
        probe_mean_error=max((result.probe_mean_error for result in loaded), default=None),
        probe_max_error=max((result.probe_max_error for result in loaded), default=None),
        failures=tuple(failures),
    )


async def _without_laggards(updates: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """What became of each update, in their order; those of laggards are ended."""
    tasks = [asyncio.create_task(update) for update in updates]
    begun, waiting = time.monotonic(), set(tasks)
    limit: float | None = None
    try:
        while waiting:
            patience = None if limit is None else max(0.0, limit - time.monotonic())
            done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            committed = sum(task.done() and not isinstance(task.result(), str) for task in tasks)
            if limit is None and 2 * committed >= len(tasks):
                now = time.monotonic()
                limit = now + max(now - begun, _LEAST_PATIENCE_SECONDS)
    finally:
        for task in waiting:
            task.cancel()
            _ENDING.add(task)
            task.add_done_callback(_ENDING.discard)
    late = f"had no new weights after {time.monotonic() - begun:.0f} s, when half of the replicas had them long since"
    return [late if task in waiting else task.result() for task in tasks]


async def _bring_up(
    replica: Replica,
    source: policy_pb2.WeightSource,
    manifest: policy_pb2.WeightManifest,
    fence: common_pb2.Fence,
    probes: list[policy_pb2.Probe],
    probe_bound: float,
) -> _Result:
    """Commit the manifest's version on one replica that does not have it, or why that failed."""
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            state = await replica.stub.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_ASK_SECONDS)
            serving = state.state in (policy_pb2.UPDATE_STATE_SERVING, policy_pb2.UPDATE_STATE_BEGUN)
            if serving and state.version == manifest.version:
                return None
            return await _update(replica, state.replica_id, source, manifest, fence, probes, probe_bound)
        except grpc.RpcError as error:
            failure = describe(error)
            logger.warning("weight update failed", replica=replica.target, error=failure)
    return failure


async def _update(
    replica: Replica,
    replica_id: str,
    source: policy_pb2.WeightSource,
    manifest: policy_pb2.WeightManifest,
    fence: common_pb2.Fence,
    probes: list[policy_pb2.Probe],
    probe_bound: float,
) -> policy_pb2.CommitUpdateResponse:
    update_id = f"{manifest.policy_id}-{manifest.version.lineage}-{manifest.version.number}"
    try:
        await replica.stub.BeginUpdate(
            policy_pb2.BeginUpdateRequest(
                fence=fence,
                update_id=update_id,
                replica_id=replica_id,
                manifest=manifest,
                source=source,
            ),
            timeout=_PHASE_SECONDS,
        )
        await replica.stub.StageWeights(
            policy_pb2.StageWeightsRequest(fence=fence, update_id=update_id), timeout=_PHASE_SECONDS
        )
        return await replica.stub.CommitUpdate(
            policy_pb2.CommitUpdateRequest(fence=fence, update_id=update_id, probes=probes, probe_bound=probe_bound),
            timeout=_PHASE_SECONDS,
        )
    except (grpc.RpcError, asyncio.CancelledError):
        # Cancelled too: what is left open here would refuse the next update.
        await _abort(replica, fence, update_id)
        raise


async def _abort(replica: Replica, fence: common_pb2.Fence, update_id: str) -> None:
    """Drop what was staged. The update's own error is the one to report."""
    try:
        await replica.stub.AbortUpdate(
            policy_pb2.AbortUpdateRequest(fence=fence, update_id=update_id), timeout=_ASK_SECONDS
        )
    except grpc.RpcError as error:
        logger.warning("could not abort the update", replica=replica.target, error=describe(error))
