"""Checkpoints on their way between a folder and the ranks: checked before anything changes, whole or not at all."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from troupe_contracts.errors import FailedPrecondition

from troupe_learner import checkpoint as checkpoints
from troupe_learner.checkpoint import Checkpoint, Layout
from troupe_learner.checkpoint_layout import MODEL
from troupe_learner.gang import Generation, Progress
from troupe_learner.ledger import Ledger
from troupe_learner.model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose checkpoints they are: a learner restores what one that is the same has saved."""

    policy_id: str
    layout: Layout
    model: ModelFolder


async def load(owner: Owner, generation: Generation, folder: Path, begins: bool = False) -> Checkpoint:
    """Brings the ranks to a checkpoint, once all of it has been checked.

    Args:
        begins: whether a run begins there, whose updates count from its weights on.

    Raises:
        ServiceError: it is not one, is damaged, or is not of this learner; nothing has changed.
    """
    found = await asyncio.to_thread(checkpoints.read, folder)
    _check_fits(owner, found)
    await load_again(generation, folder, 0 if begins else found.ledger.applied_step)
    return found


async def load_again(generation: Generation, folder: Path, updates: int) -> None:
    """Brings the ranks to a checkpoint that was loaded or saved before, as weights that have had so many updates.

    Raises:
        ServiceError: it is damaged.
    """
    await asyncio.to_thread(checkpoints.verify, folder)
    await generation.run({"command": "load", "folder": str(folder), "updates": updates})


class Saving:
    """A new checkpoint at a place where there is none."""

    def __init__(self, owner: Owner, target: Path) -> None:
        self._owner = owner
        self._draft = checkpoints.Draft(target)

    async def write(self, generation: Generation, on_progress: Progress) -> None:
        """Has the ranks write their parts into a folder that nobody sees yet."""
        folder = await asyncio.to_thread(self._draft.create)
        await asyncio.to_thread(self._owner.model.copy_definition, folder / MODEL)
        await generation.run({"command": "save", "folder": str(folder)}, on_progress)

    async def publish(self, ledger: Ledger) -> Checkpoint:
        """Gives it its name."""
        owner = self._owner
        return await asyncio.to_thread(
            self._draft.publish, owner.policy_id, owner.layout, owner.model.architecture_digest, ledger
        )

    async def discard(self) -> None:
        """Removes what was not published."""
        await asyncio.to_thread(self._draft.discard)


def _check_fits(owner: Owner, found: Checkpoint) -> None:
    for what, theirs, ours in (
        ("policy", found.policy_id, owner.policy_id),
        ("layout", found.layout, owner.layout),
        ("architecture", found.architecture_digest, owner.model.architecture_digest),
    ):
        if theirs != ours:
            raise FailedPrecondition(
                str(found.folder),
                f"is of {what} {theirs}, this learner is of {ours}: start one that is the same, or set TROUPE_MODEL "
                f"to {found.folder / MODEL} to go on from its weights without the optimizer's moments",
            )
