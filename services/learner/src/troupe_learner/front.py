"""The front: state of the learner, and the one place that tells the gang what to do. No torch.

States and what they let through:

    STARTING      nothing yet
    READY         everything
    TRAINING      Score and ExportWeights wait their turn; another change of the weights is refused, naming the operation
    RESTARTING    a rank ended: the ledger is back at the last checkpoint (or the initial weights), calls are UNAVAILABLE
    DISK_FULL     the same, and ranks cannot be started before there is room on the disk; calls are UNAVAILABLE
    FAILED        generations kept ending; calls are UNAVAILABLE with the reason

A generation that ends takes the trained steps since the last checkpoint with it. The ledger says so at once, under a
version that was never used for other weights (`lineages`); whoever holds the sealed batches replays them.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument, ServiceError, Unavailable
from troupe_contracts.log import get_logger

from troupe_learner import checkpoint as checkpoints
from troupe_learner.batches import BatchStore
from troupe_learner.channel import Message
from troupe_learner.checkpoint import Checkpoint, Layout
from troupe_learner.checkpoint_layout import MODEL
from troupe_learner.disk import RETRY_SECONDS
from troupe_learner.exports import Export
from troupe_learner.gang import CommandRefused, Generation, GenerationLost, Progress, RankPlan
from troupe_learner.ledger import Ledger, Version
from troupe_learner.lineages import Lineages
from troupe_learner.model_folder import ModelFolder
from troupe_learner.operations import Loaded, Operation, Operations
from troupe_learner.optimization import Optimization
from troupe_learner.reads import Reads, Scores
from troupe_learner.settings import LearnerSettings
from troupe_learner.supervisor import Supervisor
from troupe_learner.work_folder import WorkFolder

_Result = TypeVar("_Result")
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
        on_failed: Callable[[], Awaitable[None]],
    ) -> None:
        self.model = model
        self.layout = Layout(settings.engine, settings.ranks, settings.zero_stage, settings.dtype)
        self.policy_id = settings.policy_id
        self.batches = BatchStore(folder.batches)
        self.operations = Operations()
        self.engine = ""
        self._folder = folder
        self._lineages = lineages
        self.ledger = Ledger("", lineages.first(settings.lineage))
        self._initial = self.ledger.version
        # What a new generation starts from: a published checkpoint, or the initial weights.
        self._base: Checkpoint | None = None
        # The BindRun that the base is of: run and uri, as requested. Its repetition changes nothing.
        self._bound: tuple[str, str] | None = None
        # Why a base could not be loaded, until another is given: no run may begin unasked at weights that are not its own.
        self._base_lost = ""
        self._supervisor = Supervisor(
            _rank_plan(settings, model, folder.ranks), self._roll_back, self._load_base, on_failed
        )
        self._changing: Operation | None = None
        # Held from a command to the end of what it changes here, so that weights never go under another version's name.
        self._turn = asyncio.Lock()
        self._reads = Reads(folder, self._run)
        self._tasks: set[asyncio.Task[Any]] = set()

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
        )

    async def close(self) -> None:
        """Ends the ranks; operations under way fail, so that their watchers go. Safe to call again."""
        await self._supervisor.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def operation(self) -> str:
        """Name of the operation that changes the weights now; empty if none does."""
        return "" if self._changing is None else self._changing.name

    @property
    def state(self) -> State:
        if self._supervisor.failed:
            return State.FAILED
        if self._supervisor.disk_full:
            return State.DISK_FULL
        if self._supervisor.generation is None:
            return State.RESTARTING if self._supervisor.detail else State.STARTING
        return State.READY if self._changing is None else State.TRAINING

    @property
    def detail(self) -> str:
        """Why a generation was lost last; empty if none was."""
        return self._supervisor.detail

    def check_run(self, run_id: str) -> Ledger:
        """The ledger for a run that wants to train: its own, or that of a learner which no run has taken.

        Raises:
            ServiceError: it is another run's (`Ledger.bound_to`), or its run's base is lost.
        """
        ledger = self.ledger.bound_to(run_id)
        if self._base_lost:
            raise FailedPrecondition(
                "base", f"{self._base_lost}: restore a checkpoint of run {run_id}, or begin it again with BindRun"
            )
        return ledger

    def bind(self, run_id: str) -> None:
        """Takes a learner that nobody has for a run; see `check_run`."""
        self.ledger = self.check_run(run_id)

    # --- changes of the weights, one at a time ----------------------------------------------------------------------

    def train(self, run_id: str, step: int, digest: bytes, optimization: Optimization) -> Operation:
        """Starts a step, or gives the operation of the same one.

        Raises:
            ServiceError: see `Ledger`, `BatchStore.path`, and the table of states.
        """
        self.bind(run_id)
        subject = f"train-{step}-{digest.hex()[:16]}"
        if self._changing is not None and self._changing.subject == subject:
            return self._changing
        stored = self.ledger.stored_result(step, digest)
        if stored is not None:
            operation = self.operations.begin(subject)
            operation.finish(step=stored)
            return operation
        generation = self._supervisor.ready()
        batch = self.batches.path(step, digest)
        command = {"command": "train", "batch": str(batch), "optimization": asdict(optimization)}

        async def work(operation: Operation) -> None:
            # Recorded first: trained weights whose name cannot be recorded would be weights without a name.
            await asyncio.to_thread(self._lineages.produced, self.ledger.next_version)
            result = await generation.run(command, operation.advance)
            await self._still(generation)
            self.ledger = self.ledger.with_step(digest, result["metrics"])
            await asyncio.to_thread(self.batches.forget_before, step)
            operation.finish(step=self.ledger.steps[-1])

        return self._change(subject, work)

    def save(self, uri: str) -> Operation:
        """Starts a checkpoint; a folder that holds this very state already is the result."""
        target = checkpoints.local_folder(uri)
        generation = self._supervisor.ready()

        async def work(operation: Operation) -> None:
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
            self._base = found
            operation.finish(checkpoint=_loaded(found))

        return self._change("save", work)

    def restore(self, uri: str) -> Operation:
        """Starts loading a checkpoint; the learner is then bound to its run."""
        target = checkpoints.local_folder(uri)
        generation = self._supervisor.ready()

        async def work(operation: Operation) -> None:
            found = await self._load(generation, target)
            found = replace(found, ledger=await self._renamed(found.ledger))
            await self._still(generation)
            self._begin_at(found, found.ledger)
            operation.finish(checkpoint=_loaded(found))

        return self._change("restore", work)

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
        if self._changing is not None and self._changing.subject == subject:
            return self._changing
        if self.ledger.run_id == run_id:
            if self.ledger.steps:
                raise FailedPrecondition(
                    f"run {run_id}",
                    f"has {self.ledger.applied_step} applied steps here and begins once: go on with step "
                    f"{self.ledger.applied_step + 1}, or restore one of its checkpoints",
                )
            if self._bound == (run_id, uri):
                operation = self.operations.begin(subject)
                operation.finish(checkpoint=self._begun(uri))
                return operation

        async def work(operation: Operation) -> None:
            if target is None:
                # Weights are initial wherever they have that name.
                if self.ledger.version != self._initial:
                    await generation.run({"command": "reset"})
                lineage = await asyncio.to_thread(self._lineages.resumed, self._initial)
                base = None
            else:
                base = await self._load(generation, target)
                lineage = await asyncio.to_thread(self._lineages.begun, base.ledger.lineage)
            await self._still(generation)
            ledger = Ledger(run_id, lineage)
            if base is None:
                self._initial = ledger.version
            else:
                base = replace(base, ledger=ledger)
            self._begin_at(base, ledger)
            self._bound = (run_id, uri)
            operation.finish(checkpoint=self._begun(uri))

        return self._change(subject, work)

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
            return await self._reads.export(current)

        return await self._to_the_end(work())

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """Scores sequences under the weights that are current when their turn comes."""

        async def work() -> Scores:
            return await self._reads.score(self.ledger.version, sequences)

        return await self._to_the_end(work())

    # --- inside -----------------------------------------------------------------------------------------------------

    def _change(self, subject: str, work: Callable[[Operation], Awaitable[None]]) -> Operation:
        if self._changing is not None:
            raise FailedPrecondition(
                self._changing.name, "is under way: wait for its end (WatchOperation), then call again"
            )
        operation = self._changing = self.operations.begin(subject)
        self._spawn(self._carry_out(operation, work))
        return operation

    async def _carry_out(self, operation: Operation, work: Callable[[Operation], Awaitable[None]]) -> None:
        """Runs the work; whatever can go wrong with it ends in the operation."""
        try:
            async with self._turn:
                await work(operation)
        except GenerationLost as error:
            operation.fail(
                "UNAVAILABLE",
                f"{operation.subject} was lost with the gang: {error}; wait for READY, then replay from the step "
                "after GetLearner's applied_step",
            )
        except CommandRefused as error:
            operation.fail(error.code, str(error))
        except ServiceError as error:
            operation.fail(error.code.name, error.message)
        except OSError as error:
            operation.fail("INTERNAL", f"{operation.subject}: {error}; the state is as before")
        finally:
            self._changing = None
            if not operation.now.done:
                operation.fail("UNAVAILABLE", f"{operation.subject} ended with the learner")

    async def _to_the_end(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Takes a turn that goes on when the caller goes away: the ranks still read and write its files."""

        async def turn() -> _Result:
            async with self._turn:
                return await work

        return await asyncio.shield(self._spawn(turn()))

    async def _load(self, generation: Generation, folder: Path) -> Checkpoint:
        """Brings the ranks to a checkpoint, once all of it has been checked.

        Raises:
            ServiceError: it is not one, is damaged, or is not of this learner; nothing has changed.
        """
        found = await asyncio.to_thread(checkpoints.read, folder)
        self._check_fits(found)
        await asyncio.to_thread(checkpoints.verify, folder)
        await generation.run({"command": "load", "folder": str(folder)})
        return found

    def _begin_at(self, base: Checkpoint | None, ledger: Ledger) -> None:
        """The ranks were brought to another state: it is what is current, and what a new generation starts from."""
        if ledger.run_id != self.ledger.run_id and self.ledger.run_id:
            self.batches.forget_all()
        self._base, self._bound, self._base_lost = base, None, ""
        self.ledger = ledger

    def _begun(self, uri: str) -> Loaded:
        return Loaded(uri, self.ledger, self._base.byte_size if self._base else 0)

    async def _run(self, command: Message) -> None:
        """A command that changes nothing here; what the ranks say becomes the call's error."""
        try:
            await self._supervisor.ready().run(command)
        except (GenerationLost, CommandRefused) as error:
            raise _as_service_error(error) from error

    async def _still(self, generation: Generation) -> None:
        """Nothing may be recorded of a generation that was lost meanwhile."""
        if self._supervisor.generation is not generation:
            raise GenerationLost(await generation.lost())

    async def _written(self, generation: Generation, target: Path, on_progress: Progress) -> Checkpoint:
        """A new checkpoint of the current state at `target`, whole or not at all."""
        draft = checkpoints.Draft(target)
        try:
            folder = await asyncio.to_thread(draft.create)
            await asyncio.to_thread(self.model.copy_definition, folder / MODEL)
            await generation.run({"command": "save", "folder": str(folder)}, on_progress)
            await self._still(generation)
            return await asyncio.to_thread(
                draft.publish, self.policy_id, self.layout, self.model.architecture_digest, self.ledger
            )
        finally:
            await asyncio.to_thread(draft.discard)

    def _check_fits(self, found: Checkpoint) -> None:
        for what, theirs, ours in (
            ("policy", found.policy_id, self.policy_id),
            ("layout", found.layout, self.layout),
            ("architecture", found.architecture_digest, self.model.architecture_digest),
        ):
            if theirs != ours:
                raise FailedPrecondition(
                    str(found.folder),
                    f"is of {what} {theirs}, this learner is of {ours}: start one that is the same, or set TROUPE_MODEL "
                    f"to {found.folder / MODEL} to go on from its weights without the optimizer's moments",
                )

    async def _roll_back(self) -> None:
        """What a lost generation leaves: the base, and the run that the learner belongs to."""
        base = self._base.ledger if self._base else Ledger("", self._initial.lineage)
        ledger = await self._renamed(base)
        if self._base is None:
            self._initial = ledger.version
        else:
            self._base = replace(self._base, ledger=ledger)
        self.ledger = replace(ledger, run_id=self.ledger.run_id)
        await self._reads.forget_export()

    async def _renamed(self, ledger: Ledger) -> Ledger:
        """The ledger under a lineage in which its version is the newest."""
        return ledger.in_lineage(await asyncio.to_thread(self._lineages.resumed, ledger.version))

    async def _load_base(self, generation: Generation) -> None:
        """Brings a new generation to the base. One that is gone is no reason to stay down, but ends the run's hold.

        At the initial weights a replay of its steps would begin where the run may never have been.
        """
        if self._base is None:
            return
        folder = self._base.folder
        try:
            await asyncio.to_thread(checkpoints.verify, folder)
            await generation.run({"command": "load", "folder": str(folder)})
        except (CommandRefused, ServiceError, OSError) as error:
            run_id = self.ledger.run_id
            self._base_lost = f"run {run_id} began at {folder}, which cannot be loaded: {error}"
            _log.error("no run has the learner any more, at the initial weights", reason=self._base_lost)
            self._supervisor.detail += f"; bound to no run, at the initial weights: {self._base_lost}"
            self._base, self._bound = None, None
            await self._roll_back()
            self.ledger = replace(self.ledger, run_id="")

    def _spawn(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _loaded(found: Checkpoint) -> Loaded:
    return Loaded(str(found.folder), found.ledger, found.byte_size)


def _as_service_error(error: GenerationLost | CommandRefused) -> ServiceError:
    if isinstance(error, GenerationLost):
        return Unavailable(f"the gang was lost: {error}; wait for READY, then call again", retry_after_seconds=1.0)
    if error.code == "RESOURCE_EXHAUSTED":
        return Exhausted(str(error), retry_after_seconds=RETRY_SECONDS)
    return FailedPrecondition("ranks", str(error))


def _rank_plan(settings: LearnerSettings, model: ModelFolder, folder: Path) -> RankPlan:
    return RankPlan(
        ranks=settings.ranks,
        threads=settings.threads,
        folder=folder,
        stall_seconds=settings.stall_seconds,
        start={
            "model": str(model.folder),
            "engine": settings.engine,
            "ranks": settings.ranks,
            "zero_stage": settings.zero_stage,
            "dtype": settings.dtype,
            "threads": settings.threads,
            "tokens_per_microbatch": settings.tokens_per_microbatch,
            "recompute_old": settings.old_log_probs == "recompute",
            "adamw": {
                "beta1": settings.adam_beta1,
                "beta2": settings.adam_beta2,
                "eps": settings.adam_eps,
                "weight_decay": settings.weight_decay,
            },
        },
    )
