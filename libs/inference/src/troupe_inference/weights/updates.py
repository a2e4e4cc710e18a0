"""The four phases of a weight update on one replica.

- begin: the manifest is checked against the model that is loaded;
- stage: every byte is pulled and verified into memory, the engine is not touched;
- commit: the engine is paused, loads, forgets its caches, and must reproduce the given log-probabilities;
- abort: what was staged is dropped.

A failure before loading began leaves the version before serving. One after it breaks the replica: it serves
nothing, and health says so, until another commit succeeds. A commit runs to its end even when the caller is
gone.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from troupe.v1 import policy_pb2
from troupe_contracts.errors import DataLoss, FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from troupe_contracts.fence import FenceGuard
from troupe_contracts.health import Health
from troupe_contracts.log import get_logger

from troupe_inference import exported, wire
from troupe_inference.engines.base import Engine, EngineError, Tensor
from troupe_inference.token_policy import Serving
from troupe_inference.transcript import Version
from troupe_inference.weights.manifest import Manifest, read_manifest
from troupe_inference.weights.probes import (
    Agreement,
    Probe,
    ProbeError,
    bound,
    compare,
    floor_of,
    judge,
    noise,
    read_probes,
)
from troupe_inference.weights.sources import Source, open_source
from troupe_inference.weights.states import Event, IllegalTransitionError, Phase, after, reported

_logger = get_logger()


@dataclass(frozen=True, slots=True)
class UpdateTarget:
    """What is updated."""

    policy_id: str
    replica_id: str
    # Shapes of the tensors of the model that is loaded, by name.
    shapes: Mapping[str, tuple[int, ...]]
    tied_embeddings: bool


@dataclass(frozen=True, slots=True)
class _Open:
    """The update that is open. The fence that opened it, since a newer one may replace it."""

    request: policy_pb2.BeginUpdateRequest
    manifest: Manifest
    source: Source


class WeightUpdates:
    """Weight updates of one replica; for use on the event loop.

    Args:
        version: what the engine holds at the start.
        pause_seconds: what generations that run get before a commit ends them.
    """

    def __init__(
        self, target: UpdateTarget, engine: Engine, health: Health, version: Version, *, pause_seconds: float
    ) -> None:
        self._target = target
        self._engine = engine
        self._health = health
        self._pause_seconds = pause_seconds
        self._version: Version | None = version
        exported.serves(target.policy_id, version)
        self._broken = ""
        self._phase = Phase.IDLE
        self._open: _Open | None = None
        self._staged: dict[str, Tensor] = {}
        self._staging: asyncio.Task[dict[str, Tensor]] | None = None
        self._fences = FenceGuard()
        self._last_commit: tuple[str, policy_pb2.CommitUpdateResponse] | None = None
        self._last_abort = ""
        # Mean error of the first probe that was passed; see `probes`.
        self._baseline: float | None = None

    def serving(self) -> Serving:
        """What the replica serves now."""
        obstacle = self._broken
        if self._phase is Phase.COMMITTING:
            obstacle = "new weights are being loaded: ask again, or ask another replica"
        return Serving(self._version, reported(self._phase, broken=bool(self._broken)), obstacle)

    async def engine_failed(self, reason: str) -> None:
        """Takes the replica out of rotation for good: only a restart brings an engine back."""
        self._version = None
        self._broken = reason
        exported.serves(self._target.policy_id, None)
        await self._health.set_serving(False)

    async def begin(self, request: policy_pb2.BeginUpdateRequest) -> policy_pb2.BeginUpdateResponse:
        """Opens an update. The same request again changes nothing; a newer lease replaces an update left
        open.
        """
        self._fences.check(request.fence)
        if not request.update_id:
            raise InvalidArgument("update_id", "is empty: choose a name for the update")
        if request.replica_id != self._target.replica_id:
            raise FailedPrecondition(
                f"replica {self._target.replica_id}", f"the update is meant for replica {request.replica_id!r}"
            )
        manifest = read_manifest(
            request.manifest,
            policy_id=self._target.policy_id,
            shapes=self._target.shapes,
            tied_embeddings=self._target.tied_embeddings,
        )
        source = open_source(request.source)
        if self._open is not None:
            if self._open.request == request:
                return policy_pb2.BeginUpdateResponse()
            if not _is_newer(request, self._open.request):
                raise FailedPrecondition(
                    f"update {self._open.request.update_id}", "is open on this replica: commit or abort it first"
                )
            self._move(Event.ABORT)
            self._close(f"replaced by update {request.update_id} of a newer lease")
        self._move(Event.BEGIN)
        # An update begun again under its name can be aborted, or committed, again.
        self._last_abort = ""
        if self._last_commit is not None and self._last_commit[0] == request.update_id:
            self._last_commit = None
        self._open = _Open(request, manifest, source)
        return policy_pb2.BeginUpdateResponse()

    async def stage(self, request: policy_pb2.StageWeightsRequest) -> policy_pb2.StageWeightsResponse:
        """Pulls and verifies all bytes."""
        self._fences.check(request.fence)
        opened = self._find(request.update_id)
        if self._phase is Phase.STAGED:
            return policy_pb2.StageWeightsResponse(staged_bytes=opened.manifest.byte_size)
        if self._staging is not None:
            raise FailedPrecondition(f"update {request.update_id}", "is being staged already: wait for that call")
        staging = self._staging = asyncio.create_task(self._pull(opened))
        try:
            staged = await staging
        except asyncio.CancelledError:
            staging.cancel()
            if self._open is not opened:
                raise _aborted(request.update_id) from None
            raise
        finally:
            if self._staging is staging:
                self._staging = None
        if self._open is not opened:
            # In the moment between the last byte and now.
            raise _aborted(request.update_id)
        self._staged = staged
        self._move(Event.STAGE)
        return policy_pb2.StageWeightsResponse(staged_bytes=sum(len(tensor.content) for tensor in staged.values()))

    async def commit(self, request: policy_pb2.CommitUpdateRequest) -> policy_pb2.CommitUpdateResponse:
        """Loads what was staged and proves it. The same commit again returns the result of the first."""
        self._fences.check(request.fence)
        if self._last_commit is not None and self._last_commit[0] == request.update_id:
            return self._last_commit[1]
        opened = self._find(request.update_id)
        probes = read_probes(request, self._engine.info)
        self._move(Event.COMMIT)
        return await asyncio.shield(asyncio.create_task(self._load(opened, probes, request.probe_bound)))

    async def abort(self, request: policy_pb2.AbortUpdateRequest) -> policy_pb2.AbortUpdateResponse:
        """Drops what was staged. The same abort again changes nothing."""
        self._fences.check(request.fence)
        if request.update_id and request.update_id == self._last_abort:
            return policy_pb2.AbortUpdateResponse()
        self._find(request.update_id)
        self._move(Event.ABORT)
        self._close("aborted")
        self._last_abort = request.update_id
        return policy_pb2.AbortUpdateResponse()

    def _find(self, update_id: str) -> _Open:
        opened = self._open
        if opened is None or opened.request.update_id != update_id:
            held = f"update {opened.request.update_id} is open" if opened else "none is open"
            raise NotFound("update", update_id, f"{held} on replica {self._target.replica_id}: begin it first")
        return opened

    def _move(self, event: Event) -> None:
        try:
            self._phase = after(self._phase, event)
        except IllegalTransitionError as error:
            name = self._open.request.update_id if self._open else ""
            raise FailedPrecondition(f"update {name}", str(error)) from error

    def _close(self, why: str) -> None:
        if self._open is not None:
            _logger.info("update closed", update=self._open.request.update_id, why=why)
        self._open = None
        self._staged = {}
        if self._staging is not None:
            self._staging.cancel()
            self._staging = None

    async def _pull(self, opened: _Open) -> dict[str, Tensor]:
        wanted = {tensor.name: tensor for tensor in opened.manifest.tensors}
        staged: dict[str, Tensor] = {}
        async for name, content in opened.source.tensors(self._target.policy_id, opened.manifest):
            digest = await asyncio.to_thread(_sha256, content)
            if digest != wanted[name].sha256:
                raise DataLoss(
                    f"tensor {name} of {opened.manifest.version} has SHA-256 {digest.hex()}, the manifest says "
                    f"{wanted[name].sha256.hex()}; the version before goes on serving; stage again"
                )
            staged[name] = Tensor(wanted[name].spec, content)
        missing = sorted(wanted.keys() - staged.keys())
        if missing:
            raise DataLoss(f"the source ended without {len(missing)} tensors, {missing[0]} among them; stage again")
        return staged

    async def _load(self, opened: _Open, probes: list[Probe], ceiling: float) -> policy_pb2.CommitUpdateResponse:
        started = time.perf_counter()
        floor = floor_of(self._engine.info.dtype)
        largest = bound(ceiling, floor, self._baseline)
        before = agreement = Agreement(0.0, 0.0)
        failure = "the load was interrupted"
        try:
            await self._engine.pause(self._pause_seconds)
            if probes:
                # Also of a broken replica: a load that changes nothing must not pass on the second try.
                before = await self._agreement(probes)
            await self._engine.load_weights(self._staged)
            if probes:
                agreement = await self._agreement(probes)
                judge(agreement, before, largest, noise(floor, self._baseline))
            failure = ""
        except EngineError as error:
            failure = str(error)
            raise Internal(self._broken_text(opened, failure)) from error
        except ProbeError as error:
            failure = str(error)
            raise DataLoss(self._broken_text(opened, failure)) from error
        finally:
            self._move(Event.FAILED if failure else Event.LOADED)
            self._version = None if failure else opened.manifest.version
            exported.serves(self._target.policy_id, self._version)
            self._broken = self._broken_text(opened, failure) if failure else ""
            self._close(failure or "committed")
            await self._health.set_serving(not failure)
            await self._engine.resume()
        response = policy_pb2.CommitUpdateResponse(
            version=wire.version_to_proto(opened.manifest.version),
            probe_mean_error=agreement.mean,
            probe_max_error=agreement.largest,
            paused_seconds=time.perf_counter() - started,
        )
        exported.PAUSED.labels(self._target.policy_id).set(response.paused_seconds)
        if probes:
            exported.PROBE_ERROR.labels(self._target.policy_id).set(agreement.mean)
            response.probe_bound = largest
            response.probe_mean_error_before = before.mean
            self._baseline = agreement.mean if self._baseline is None else self._baseline
        self._last_commit = (opened.request.update_id, response)
        return response

    async def _agreement(self, probes: list[Probe]) -> Agreement:
        return compare(probes, await self._engine.score([probe.token_ids for probe in probes]))

    def _broken_text(self, opened: _Open, failure: str) -> str:
        return (
            f"update {opened.request.update_id} to {opened.manifest.version} failed after loading began, the replica "
            f"serves nothing until a committed version is loaded: {failure}"
        )


def _aborted(update_id: str) -> Unavailable:
    return Unavailable(f"update {update_id} was aborted while it was staged")


def _sha256(content: bytearray) -> bytes:
    return hashlib.sha256(content).digest()


def _is_newer(request: policy_pb2.BeginUpdateRequest, opened: policy_pb2.BeginUpdateRequest) -> bool:
    """Whether the caller took the lease after the one that opened the update."""
    return request.fence.store_id == opened.fence.store_id and request.fence.token > opened.fence.token
