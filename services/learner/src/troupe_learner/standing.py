"""Which weights the ranks hold, under which name, for which run; and what a new generation starts from. No torch.

A generation that ends takes the trained steps since the *base* with it: the checkpoint that was saved or loaded last, or the
initial weights. The ledger then says so at once, under a version that was never used for other weights (`lineages`);
whoever holds the sealed batches replays them.
"""

import asyncio
from dataclasses import replace

from troupe_contracts.errors import FailedPrecondition

from troupe_learner.checkpoint import Checkpoint
from troupe_learner.ledger import Ledger
from troupe_learner.lineages import Lineages
from troupe_learner.operations import Loaded


class Standing:
    """Where one learner stands. For use on the event loop only."""

    def __init__(self, lineages: Lineages, lineage: str) -> None:
        self.ledger = Ledger("", lineages.first(lineage))
        self.base: Checkpoint | None = None
        """A published checkpoint, or the initial weights."""
        self._lineages = lineages
        self._initial = self.ledger.version
        # The BindRun that the base is of: run and uri, as requested. Its repetition changes nothing.
        self._bound: tuple[str, str] | None = None
        # Why a base could not be loaded, until another is given: no run may begin unasked at weights that are not its own.
        self._base_lost = ""

    def check_run(self, run_id: str) -> None:
        """Make sure that a run which wants to train has the learner.

        Raises:
            ServiceError: it has not (`Ledger.check_run`), or its base is lost.
        """
        if run_id and self._base_lost:
            raise FailedPrecondition(
                "base", f"{self._base_lost}: restore a checkpoint of run {run_id}, or begin it again with BindRun"
            )
        self.ledger.check_run(run_id)

    @property
    def is_initial(self) -> bool:
        """The ranks hold the initial weights: they are so wherever they have that name."""
        return self.ledger.version == self._initial

    def has_begun(self, run_id: str, uri: str) -> bool:
        """Whether the learner was given to a run by this very request, and nothing has come since."""
        return self._bound == (run_id, uri)

    def begun(self, uri: str) -> Loaded:
        """What a run begins with."""
        return Loaded(uri, self.ledger, self.base.byte_size if self.base else 0)

    async def new_lineage(self, base: Checkpoint | None) -> str:
        """The lineage under which a run begins with a checkpoint, or with the initial weights for None."""
        if base is None:
            return await asyncio.to_thread(self._lineages.resumed, self._initial)
        return await asyncio.to_thread(self._lineages.begun, base.ledger.lineage)

    async def produces(self) -> None:
        """Records the version that is to be made: trained weights whose name cannot be recorded would be without a name."""
        await asyncio.to_thread(self._lineages.produced, self.ledger.next_version)

    async def renamed(self, ledger: Ledger) -> Ledger:
        """The ledger under a lineage in which its version is the newest."""
        return ledger.in_lineage(await asyncio.to_thread(self._lineages.resumed, ledger.version))

    def begin_at(self, base: Checkpoint | None, ledger: Ledger, bound: tuple[str, str] | None = None) -> None:
        """The ranks were brought to another state: it is what is current, and what a new generation starts from.

        Args:
            bound: run and uri of the request that gives the learner to a run that begins.
        """
        if base is None:
            self._initial = ledger.version
        self.base, self._bound, self._base_lost = base, bound, ""
        self.ledger = ledger

    async def roll_back(self) -> None:
        """What a lost generation leaves: the base, and the run that the learner belongs to."""
        base = self.base.ledger if self.base else Ledger("", self._initial.lineage)
        ledger = await self.renamed(base)
        if self.base is None:
            self._initial = ledger.version
        else:
            self.base = replace(self.base, ledger=ledger)
        self.ledger = replace(ledger, run_id=self.ledger.run_id)

    async def lose_base(self, error: Exception) -> str:
        """The base cannot be loaded: the learner stands at the initial weights, and is no run's. A replay of its run's steps
        would begin where that may never have been.
        """
        folder = "nowhere" if self.base is None else self.base.folder
        reason = f"run {self.ledger.run_id} began at {folder}, which cannot be loaded: {error}"
        self.base, self._bound, self._base_lost = None, None, reason
        await self.roll_back()
        self.ledger = replace(self.ledger, run_id="")
        return reason
