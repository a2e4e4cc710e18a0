"""The front: state of the learner, and the one place that tells the gang what to do. No torch.

States and what they let through:

    STARTING      nothing yet
    READY         everything
    TRAINING      Score and ExportWeights wait their turn; another change of the weights is refused, naming the operation
    RESTARTING    a rank ended: the ledger is back at the last checkpoint (or the initial weights), calls are UNAVAILABLE; so
                  while the agent of another node is away
    DISK_FULL     the same, and ranks cannot be started before there is room on the disk; calls are UNAVAILABLE
    FAILED        generations kept ending; calls are UNAVAILABLE with the reason

Each change of the weights is an operation (`changes`); what it leads to stands in `standing`.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path

from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument, ServiceError, Unavailable
from troupe_contracts.log import get_logger

from troupe_learner import checkpoint as checkpoints
from troupe_learner.batches import BatchStore
from troupe_learner.changes import Changes
from troupe_learner.channel import Message
from troupe_learner.checkpoint import Checkpoint, Layout
from troupe_learner.disk import RETRY_SECONDS
from troupe_learner.exports import Export
from troupe_learner.gang import CommandRefused, Generation, GenerationLost, Progress, RankPlan
from troupe_learner.ledger import Ledger, Version
from troupe_learner.lineages import Lineages
from troupe_learner.model_folder import ModelFolder
from troupe_learner.operations import Loaded, Operation
from troupe_learner.optimization import Optimization
from troupe_learner.rank_checkpoints import Owner, Saving, load, load_again
from troupe_learner.reads import Reads, Run, Scores
from troupe_learner.settings import LearnerSettings
from troupe_learner.standing import Standing
from troupe_learner.supervisor import Hosts, Supervisor
from troupe_learner.work_folder import WorkFolder

_log = get_logger()


class State(Enum):
    """Whether the gang can work; the table stands in the module's docstring."""

    STARTING = "starting"
    READY = "ready"
    TRAINING = "training"
    RESTARTING = "restarting"
    DISK_FULL = "disk full"
    FAILED = "failed"


class StartFailed(RuntimeError):
    """The first generation could not be formed."""


class Front:
    """One learner. For use on the event loop only; `open` before anything else, `close` at the end."""

    def __init__(
        self,
        settings: LearnerSettings,
        model: ModelFolder,
        folder: WorkFolder,
        lineages: Lineages,
        plan: RankPlan,
        hosts: Hosts,
        on_failed: Callable[[], Awaitable[None]],
    ) -> None:
        self.model = model
        self.layout = Layout(settings.engine, settings.all_ranks, settings.zero_stage, settings.dtype)
        self.policy_id = settings.policy_id
        self.batches = BatchStore(folder.batches)
        self.engine = ""
        self._owner = Owner(self.policy_id, self.layout, model)
        self._standing = Standing(lineages, settings.lineage)
        self._changes = Changes()
        self.operations = self._changes.operations
        self._supervisor = Supervisor(plan, hosts, self._roll_back, self._load_base, on_failed)
        self._nodes = settings.nodes
        self._reads = Reads(folder)

    async def open(self) -> None:
        """Forms the first generation.

        Raises:
            StartFailed: it ended before it was ready, or the model is not what its folder says.
        """
        try:
            generation = await self._supervisor.start()
        except GenerationLost as error:
            raise StartFailed(str(error)) from error
        ranks = generation.description
        shapes = {name: tuple(shape) for name, shape in ranks["tensors"]}
        if problem := self.model.mismatch(shapes, ranks["tied"]):
            await self.close()
            raise StartFailed(f"the model cannot be exported under its own names: {problem}")
        zero = f" ZeRO-{self.layout.zero_stage}" if self.layout.engine == "deepspeed" else ""
        cores = ",".join(str(core) for core in ranks["cores"])
        self.engine = (
            f"{self.layout.engine}{zero} (torch {ranks['torch']}), {self.layout.dtype}, "
            f"{self.layout.ranks} rank(s) x {ranks['threads']} thread(s) on cores {cores}"
            + (f", {self._nodes} nodes" if self._nodes > 1 else "")
        )

    async def close(self) -> None:
        """Ends the ranks; operations under way fail, so that their watchers go. Safe to call again."""
        await self._supervisor.close()
        await self._changes.close()

    @property
    def ledger(self) -> Ledger:
        """Run, lineage and applied steps of the weights that are current."""
        return self._standing.ledger

    @property
    def operation(self) -> str:
        """Name of the operation that changes the weights now; empty if none does."""
        return "" if self._changes.now is None else self._changes.now.name

    @property
    def held_for(self) -> str:
        """What the learner is held for; empty if for nothing. A run that is about to have it is an operation."""
        return f"run {self.ledger.run_id}" if self.ledger.run_id else self.operation

    @property
    def state(self) -> State:
        if self._supervisor.failed:
            return State.FAILED
        if self._supervisor.disk_full:
            return State.DISK_FULL
        if self._supervisor.generation is None:
            return State.RESTARTING if self._supervisor.detail else State.STARTING
        return State.READY if self._changes.now is None else State.TRAINING

    @property
    def generation(self) -> int:
        """Number of the newest generation of ranks."""
        return self._supervisor.newest

    @property
    def detail(self) -> str:
        """Why a generation was lost last, and whom the next one waits for; empty if none was."""
        return self._supervisor.reason

    def check_run(self, run_id: str) -> None:
        """See `Standing.check_run`."""
        self._standing.check_run(run_id)

    # --- changes of the weights, one at a time ----------------------------------------------------------------------

    def train(self, run_id: str, step: int, digest: bytes, optimization: Optimization) -> Operation:
        """Starts a step, or gives the operation of the same one.

        Raises:
            ServiceError: see `Standing.check_run`, `Ledger`, `BatchStore.path`, and the table of states.
        """
        self.check_run(run_id)
        subject = f"train-{step}-{digest.hex()[:16]}"
        if (same := self._changes.under_way(subject)) is not None:
            return same
        stored = self.ledger.stored_result(step, digest)
        if stored is not None:
            return self._changes.done(subject, step=stored)
        generation = self._supervisor.ready()
        batch = self.batches.path(step, digest)
        command = {"command": "train", "step": step, "batch": str(batch), "optimization": asdict(optimization)}

        async def work(operation: Operation) -> None:
            await self._standing.produces()
            result = await generation.run(command, operation.advance)
            await self._still(generation)
            ledger = self._standing.ledger = self.ledger.with_step(digest, result["metrics"])
            self._supervisor.committed()
            await asyncio.to_thread(self.batches.forget_before, step)
            operation.finish(step=ledger.steps[-1])

        return self._changes.begin(subject, work)

    def save(self, uri: str, run_id: str, step: int) -> Operation:
        """Starts a checkpoint; a folder that holds this very state already is the result.

        The operation fails where the weights are not those of the run after the step.
        """
        target = checkpoints.local_folder(uri)
        generation = self._supervisor.ready()

        async def work(operation: Operation) -> None:
            self.ledger.check_step(run_id, step)
            if await asyncio.to_thread(target.exists):
                found = await asyncio.to_thread(checkpoints.read, target)
                held, ours = found.ledger, self.ledger
                if (held.run_id, held.version, held.applied_digest) != (
                    ours.run_id,
                    ours.version,
                    ours.applied_digest,
                ):
                    raise FailedPrecondition(
                        str(target),
                        f"exists and holds step {held.applied_step} of run {held.run_id!r}: choose another place",
                    )
            else:
                found = await self._written(generation, target, operation.advance)
            # What was saved is whole in any case. But a generation that was lost meanwhile has taken the ledger back to the
            # base before, where the next one has to begin.
            if self._supervisor.generation is generation:
                self._standing.base = found
            operation.finish(checkpoint=_loaded(found))

        return self._changes.begin("save", work)

    def restore(self, uri: str) -> Operation:
        """Starts loading a checkpoint; the learner is then bound to its run."""
        target = checkpoints.local_folder(uri)
        generation = self._supervisor.ready()

        async def work(operation: Operation) -> None:
            found = await load(self._owner, generation, target)
            found = replace(found, ledger=await self._standing.renamed(found.ledger))
            await self._still(generation)
            self._begin_at(found, found.ledger)
            operation.finish(checkpoint=_loaded(found))

        return self._changes.begin("restore", work)

    def bind_run(self, run_id: str, uri: str) -> Operation:
        """Starts giving the learner to a run that begins: at a checkpoint's weights, or at the initial ones for "".

        Raises:
            ServiceError: the run has applied steps here, and what stands in the table of states.
        """
        if not run_id:
            raise InvalidArgument("run_id", "is empty: send the run's id")
        target = checkpoints.local_folder(uri) if uri else None
        generation = self._supervisor.ready()
        subject = f"bind-{run_id}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        if (same := self._changes.under_way(subject)) is not None:
            return same
        if self.ledger.run_id == run_id:
            if self.ledger.steps:
                raise FailedPrecondition(
                    f"run {run_id}",
                    f"has {self.ledger.applied_step} applied steps here and begins once: go on with step "
                    f"{self.ledger.applied_step + 1}, or restore one of its checkpoints",
                )
            if self._standing.has_begun(run_id, uri):
                return self._changes.done(subject, checkpoint=self._standing.begun(uri))

        async def work(operation: Operation) -> None:
            base = None
            if target is not None:
                base = await load(self._owner, generation, target, begins=True)
            elif not self._standing.is_initial:
                await generation.run({"command": "reset"})
            ledger = Ledger(run_id, await self._standing.new_lineage(base))
            await self._still(generation)
            self._begin_at(None if base is None else replace(base, ledger=ledger), ledger, (run_id, uri))
            operation.finish(checkpoint=self._standing.begun(uri))

        return self._changes.begin(subject, work)

    # --- reads ------------------------------------------------------------------------------------------------------

    async def export(self, version: Version | None) -> Export:
        """The current weights as a file with its manifest.

        Raises:
            FailedPrecondition: `version` is not current, or is no longer when its turn comes.
        """

        async def work() -> Export:
            current = self.ledger.version
            if version is not None and version != current:
                raise FailedPrecondition(f"version {version}", f"is not current: {current} is, export that one")
            return await self._reads.export(current, self._ranks())

        return await self._changes.read(work())

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """Scores sequences under the weights that are current when their turn comes."""

        async def work() -> Scores:
            return await self._reads.score(self.ledger.version, sequences, self._ranks())

        return await self._changes.read(work())

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin_at(self, base: Checkpoint | None, ledger: Ledger, bound: tuple[str, str] | None = None) -> None:
        """The ranks were brought to another state, which may be another run's."""
        if ledger.run_id != self.ledger.run_id and self.ledger.run_id:
            self.batches.forget_all()
            self._supervisor.committed()
        self._standing.begin_at(base, ledger, bound)

    def _ranks(self) -> Run:
        """Carries out commands that change nothing here, on the ranks that hold the current weights and on no others; what
        they say becomes the call's error.
        """
        generation = self._supervisor.ready()

        async def run(command: Message) -> None:
            try:
                await generation.run(command)
            except (GenerationLost, CommandRefused) as error:
                raise _as_service_error(error) from error

        return run

    async def _still(self, generation: Generation) -> None:
        """Nothing may be recorded of a generation that was lost meanwhile."""
        if self._supervisor.generation is not generation:
            raise GenerationLost(await generation.lost())

    async def _written(self, generation: Generation, target: Path, on_progress: Progress) -> Checkpoint:
        """A new checkpoint of the current state at `target`, whole or not at all."""
        saving = Saving(self._owner, target)
        try:
            await saving.write(generation, on_progress)
            await self._still(generation)
            return await saving.publish(self.ledger)
        finally:
            await saving.discard()

    async def _roll_back(self) -> None:
        """A generation was lost."""
        await self._standing.roll_back()
        await self._reads.forget_export()

    async def _load_base(self, generation: Generation) -> None:
        """Brings a new generation to the base. One that is gone is no reason to stay down, but ends the run's hold."""
        base = self._standing.base
        if base is None:
            return
        try:
            await load_again(generation, base.folder, base.ledger.applied_step)
        except (CommandRefused, ServiceError, OSError) as error:
            reason = await self._standing.lose_base(error)
            await self._reads.forget_export()
            _log.error("no run has the learner any more, at the initial weights", reason=reason)
            self._supervisor.detail += f"; bound to no run, at the initial weights: {reason}"


def _loaded(found: Checkpoint) -> Loaded:
    return Loaded(str(found.folder), found.ledger, found.byte_size)


def _as_service_error(error: GenerationLost | CommandRefused) -> ServiceError:
    if isinstance(error, GenerationLost):
        return Unavailable(f"the gang was lost: {error}; wait for READY, then call again", retry_after_seconds=1.0)
    if error.code == "RESOURCE_EXHAUSTED":
        return Exhausted(str(error), retry_after_seconds=RETRY_SECONDS)
    return FailedPrecondition("ranks", str(error))
