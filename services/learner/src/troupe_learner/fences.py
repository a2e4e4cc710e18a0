"""Whose orders the learner takes: those of the orchestrator that holds the lease of its store, of one store at a time.

A small file in the work folder holds the highest token of each store. A new one is in it before the call that shows it is
carried out, so an orchestrator that has lost the lease is refused by a learner that was restarted, too.

Tokens of two stores say nothing of each other: their orchestrators would take the learner from one another, step by step. So
while the learner is a run's, it is that store's whose orchestrator took it for the run. A learner that is restarted is
nobody's, and whoever comes first takes it.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from troupe.v1 import common_pb2
from troupe_contracts.errors import FailedPrecondition
from troupe_contracts.fence import FenceGuard

from troupe_learner.disk import replace_json


class Fences:
    """The file's content, and the store that has the learner. For use on the event loop only.

    Args:
        held_for: tells what the learner is held for now; empty if for nothing.
    """

    def __init__(self, path: Path, held_for: Callable[[], str]) -> None:
        self._path = path
        self._held_for = held_for
        self._written: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        remedy = (
            "take it again before calling; where the store was put back from a backup, and no other orchestrator of it is "
            f"at work, remove {path} and restart the learner"
        )
        self._guard = FenceGuard(self._written, remedy)
        self._holder = ""
        self._turn = asyncio.Lock()

    async def check(self, fence: common_pb2.Fence) -> None:
        """Passes the newest orchestrator of the store that has the learner, and gives that store one that none has.

        Raises:
            InvalidArgument: the fence is none.
            FailedPrecondition: another orchestrator took the store's lease; or another store has the learner.
            Exhausted, FailedPrecondition: the token is new, and cannot be written down.
        """
        self._guard.check(fence)
        self.hold(fence)
        async with self._turn:
            if self._written.get(fence.store_id, 0) < fence.token:
                highest = self._written | {fence.store_id: fence.token}
                await asyncio.to_thread(replace_json, self._path, highest)
                self._written = highest
        # Others may have come meanwhile.
        self._guard.check(fence)
        self.hold(fence)

    def hold(self, fence: common_pb2.Fence) -> None:
        """Gives a learner that is held for nothing to a store.

        Raises:
            FailedPrecondition: another store has it.
        """
        held_for = self._held_for()
        if not held_for:
            self._holder = fence.store_id
        elif self._holder != fence.store_id:
            raise FailedPrecondition(
                f"store {self._holder}",
                f"has this learner for {held_for}, and tokens of two stores do not fence each other off: an orchestrator of "
                f"store {fence.store_id} cannot change it; give each a learner of its own, or, once no orchestrator of "
                f"store {self._holder} is at work any more, restart the learner",
            )
