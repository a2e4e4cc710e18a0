"""What a rank does on each command of the front. One function per command; all ranks get the same commands.

Results are plain values for the channel. A `Refused` leaves the rank as it was and is raised on every rank alike; any
other exception ends the rank, and with it the generation.

Ranks count the updates that their weights have had, and hear with each step which one it is: whatever the front believes,
a step never moves weights that it does not belong to. A generation that is told so ends, and the next one begins where the
front's ledger does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from troupe_learner.batch_file import read_batch, read_sequences, write_scores
from troupe_learner.channel import Message
from troupe_learner.checkpoint_layout import MODEL_WEIGHTS, state_file
from troupe_learner.disk import described, is_full
from troupe_learner.optimization import Optimization
from troupe_learner.rank.engine import Engine, copy_into, misfit, sum_over_ranks
from troupe_learner.rank.model import SAFETENSORS_NAMES, bytes_of, trained_parameters
from troupe_learner.rank.progress import Counted, Progress
from troupe_learner.rank.scoring import score
from troupe_learner.rank.training import StepRefused, train_step
from troupe_learner.weight_file import TensorSpec, write_tensors

_RNG = "rng.torch"


class OutOfStep(Exception):
    """The weights have had other updates than the front believes."""


class Refused(Exception):
    """The command could not be done and nothing changed; `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Rank:
    """One rank, ready for commands. `initial` loads the model folder again, `rng` is the random state of the start;
    `updates` are those that the weights have had in the run that has them.
    """

    engine: Engine
    initial: Callable[[], nn.Module]
    rng: Tensor
    specs: list[TensorSpec]
    tied: bool
    token_budget: int
    recompute_old: bool
    progress: Progress
    updates: int = 0


def train(rank: Rank, command: Message) -> Message:
    if command["step"] != rank.updates + 1:
        raise OutOfStep(
            f"step {command['step']} is not the next of these weights, which have had {rank.updates} updates"
        )
    batch = read_batch(Path(command["batch"]))
    optimization = Optimization(**command["optimization"])
    try:
        metrics = train_step(
            rank.engine,
            batch,
            optimization,
            token_budget=rank.token_budget,
            recompute_old=rank.recompute_old,
            progress=rank.progress,
        )
    except StepRefused as error:
        raise Refused("OUT_OF_RANGE", str(error)) from error
    rank.updates += 1
    return {"metrics": metrics}


def score_sequences(rank: Rank, command: Message) -> Message:
    lengths, token_ids = read_sequences(Path(command["sequences"]))
    log_probs, entropies = score(rank.engine, lengths, token_ids, rank.token_budget, rank.progress)
    if rank.engine.rank == 0:
        path = Path(command["scores"])
        with _disk_errors(path):
            write_scores(path, log_probs, entropies)
    return {}


def export(rank: Rank, command: Message) -> Message:
    _write_weights(rank, Path(command["weights"]), Counted(rank.progress, len(rank.specs)))
    return {}


def save(rank: Rank, command: Message) -> Message:
    """Writes this rank's part of a checkpoint into a folder that the front made and will publish or remove."""
    folder = Path(command["folder"])
    state = {**rank.engine.state(), _RNG: torch.get_rng_state()}
    pieces = Counted(rank.progress, len(rank.specs) + len(state))
    _write_weights(rank, folder / MODEL_WEIGHTS, pieces)
    specs = [TensorSpec(name, tuple(each.shape), _STATE_NAMES[each.dtype]) for name, each in state.items()]
    path = folder / state_file(rank.engine.rank)
    with _disk_errors(path):
        write_tensors(path, specs, ((name, bytes_of(each)) for name, each in _told(state.items(), pieces)))
    return {}


def load(rank: Rank, command: Message) -> Message:
    """Reads everything, checks it on every rank, then overwrites in place: whole or not at all."""
    folder = Path(command["folder"])
    stored: dict[str, Tensor] = load_file(folder / state_file(rank.engine.rank))
    rng = stored.pop(_RNG)
    if rank.engine.replicated():
        stored |= load_file(folder / MODEL_WEIGHTS)
    live = rank.engine.live()
    problem = misfit(live, stored)
    _agree(rank, problem and f"{folder} does not fit this learner: {problem}")
    copy_into(live, stored)
    torch.set_rng_state(rng)
    rank.updates = command["updates"]
    return {}


def reset(rank: Rank, command: Message) -> Message:
    """Back to how this rank was started: the model folder's weights, no moments. Whole or not at all."""
    weights: dict[str, Tensor] = {}
    try:
        weights = {name: each.detach() for name, each in trained_parameters(rank.initial()).items()}
    except (OSError, ValueError, SafetensorError) as error:
        problem: str | None = f"the model's folder cannot be loaded again: {error}"
    else:
        found = [(name, tuple(each.shape)) for name, each in weights.items()]
        same = found == [(spec.name, spec.shape) for spec in rank.specs]
        problem = None if same else "the model's folder holds other tensors than at the start"
    _agree(rank, problem)
    rank.engine.overwrite(weights)
    rank.engine.reset_moments()
    torch.set_rng_state(rank.rng)
    rank.updates = 0
    return {}


COMMANDS: dict[str, Callable[[Rank, Message], Message]] = {
    "train": train,
    "score": score_sequences,
    "export": export,
    "save": save,
    "load": load,
    "reset": reset,
}

_STATE_NAMES = {**SAFETENSORS_NAMES, torch.uint8: "U8", torch.int64: "I64"}


def _agree(rank: Rank, problem: str | None) -> None:
    """Refuses on every rank if one of them has a problem."""
    problems = sum_over_ranks(torch.tensor(float(problem is not None)), rank.engine.ranks)
    if problems > 0:
        raise Refused("FAILED_PRECONDITION", problem or "another rank could not")


def _write_weights(rank: Rank, path: Path, pieces: Counted) -> None:
    """Rank 0 writes; the others take part in gathering. A failed write never leaves them waiting for rank 0."""
    weights = _told(rank.engine.weights(), pieces)
    if rank.engine.rank == 0:
        try:
            with _disk_errors(path):
                write_tensors(path, rank.specs, ((name, bytes_of(each)) for name, each in weights))
        finally:
            _drain(weights)
    _drain(weights)


def _told(tensors: Iterable[tuple[str, Tensor]], pieces: Counted) -> Iterator[tuple[str, Tensor]]:
    """The same tensors; each is a piece once the next one is asked for."""
    for each in tensors:
        yield each
        pieces.piece()


def _drain(weights: Iterator[tuple[str, Tensor]]) -> None:
    for _ in weights:
        pass


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of writing into a refusal that names the file."""
    try:
        yield
    except OSError as error:
        code = "RESOURCE_EXHAUSTED" if is_full(error) else "FAILED_PRECONDITION"
        raise Refused(code, f"{path} {described(error)}") from error
