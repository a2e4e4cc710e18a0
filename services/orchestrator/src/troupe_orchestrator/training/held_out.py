"""The problems that a run is validated on: read once, and disjoint from what it trains on."""

from collections.abc import Sequence
from dataclasses import dataclass

from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.datasets.loading import MAX_BYTES, DatasetError, load
from troupe_orchestrator.datasets.reading import read_data_set
from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.run_config import RunConfig

_KEY = "config.validation.dataset"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The problems that a run is validated on."""

    name: str
    content: bytes
    problems: int
    """Of the file, as many as are used."""


def load_held_out(config: RunConfig, tasks: Sequence[Task]) -> HeldOut | None:
    """The validation file; None without validation. It has no bad line and no question of the training tasks.

    Raises:
        InvalidArgument: it cannot be read or used, or a question is in both files.
    """
    if config.validation is None:
        return None
    path = config.validation.dataset
    content = read_data_set(path, MAX_BYTES, _KEY)
    try:
        dataset = load(path.name, content, config.validation.format)
    except DatasetError as error:
        raise InvalidArgument(_KEY, str(error)) from error
    if dataset.errors:
        raise InvalidArgument.every((_KEY, str(bad)) for bad in dataset.errors[:20])
    trained = {_question(task): task.task_id for task in tasks}
    used = dataset.tasks[: config.validation.limit]
    shared = [
        f"{task.task_id} has the question of {trained[_question(task)]}" for task in used if _question(task) in trained
    ]
    if shared:
        raise InvalidArgument(
            _KEY,
            f"{len(shared)} of its problems are training tasks of {config.dataset.train}, what is validated on must not be "
            f"trained on: {'; '.join(shared[:5])}{'; …' if len(shared) > 5 else ''}",
        )
    return HeldOut(path.name, content, len(used))


def _question(task: Task) -> str:
    """What makes two problems the same: the words of the question."""
    return " ".join(task.question.split()).casefold()
