"""Learner and engine: each remembers the highest fence only while it lives, and weights are the batches that made them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from troupe_contracts.errors import ServiceError
from troupe_learner.ledger import Ledger, Version
from troupe_orchestrator.training.protocol import LearnerView

from modelled.store import RUN, RefusedError, Weights


@dataclass
class Learner:
    """The contract of a learner, with its real ledger; what is under way ends when the model says so."""

    ledger: Ledger = field(default_factory=lambda: Ledger("", "initial"))
    weights: Weights = ()
    base: tuple[Ledger, Weights] = (Ledger("", "initial"), ())
    """What a gang that is formed again starts from."""
    fence: int = 0
    produced: dict[str, int] = field(default_factory=lambda: {"initial": 0})
    """Highest number of each lineage; on disk."""
    lineages: "itertools.count[int]" = field(default_factory=itertools.count)
    disk: dict[str, tuple[Ledger, Weights]] = field(default_factory=dict)
    """Checkpoints by URI."""
    trained: dict[int, set[str]] = field(default_factory=dict)
    """Every digest that was ever trained as a step of the run."""
    under_way: Callable[[], None] | None = None

    @property
    def view(self) -> LearnerView:
        return LearnerView(self.ledger.run_id, tuple(step.digest.decode() for step in self.ledger.steps))

    def check(self, token: int) -> None:
        if token < self.fence:
            raise RefusedError("stale fence")
        self.fence = token

    def begin(self, work: Callable[[], None]) -> None:
        if self.under_way is not None:
            raise RefusedError("another change is under way")
        self.under_way = work

    def finish(self) -> None:
        assert self.under_way is not None
        work, self.under_way = self.under_way, None
        work()

    def train(self, token: int, update: int, digest: str) -> None:
        self.check(token)
        try:
            self.ledger.check_run(RUN)
            known = self.ledger.stored_result(update, digest.encode())
        except ServiceError as error:
            raise RefusedError(str(error)) from error
        if known is not None:
            return

        def work() -> None:
            if self.ledger.applied_step + 1 != update:
                return
            self.ledger = self.ledger.with_step(digest.encode(), {})
            self.weights = (*self.weights, digest)
            self.trained.setdefault(update, set()).add(digest)
            self.produced[self.ledger.lineage] = self.ledger.applied_step

        self.begin(work)

    def bind(self, token: int, uri: str) -> None:
        self.check(token)
        if self.ledger.run_id == RUN and self.ledger.steps:
            raise RefusedError("the run has applied steps here")
        if uri and uri not in self.disk:
            raise RefusedError("no such checkpoint")
        lineage, weights = ("initial", ()) if not uri else (f"begun~{next(self.lineages)}", self.disk[uri][1])

        def work() -> None:
            self._at(Ledger(RUN, lineage), weights)
            self.base = (self.ledger, self.weights)

        self.begin(work)

    def save(self, token: int, uri: str) -> None:
        self.check(token)

        def work() -> None:
            self.disk.setdefault(uri, (self.ledger, self.weights))
            self.base = self.disk[uri]

        self.begin(work)

    def restore(self, token: int, uri: str) -> None:
        self.check(token)
        if uri not in self.disk:
            raise RefusedError("no such checkpoint")
        found = self.disk[uri]

        def work() -> None:
            self._at(*found)
            self.base = (self.ledger, self.weights)

        self.begin(work)

    def lose_rank(self) -> None:
        run_id = self.ledger.run_id
        self.under_way = None
        self._at(*self.base)
        self.ledger = replace(self.ledger, run_id=run_id)

    def restart(self) -> None:
        self.under_way = None
        self.fence = 0
        self._at(Ledger("", "initial"), ())
        self.base = (self.ledger, self.weights)

    def _at(self, ledger: Ledger, weights: Weights) -> None:
        """These weights, in a lineage in which they are the newest."""
        lineage = ledger.lineage
        if self.produced.get(lineage) != ledger.applied_step:
            lineage = f"{lineage}~{next(self.lineages)}"
            self.produced[lineage] = ledger.applied_step
        self.ledger, self.weights = ledger.in_lineage(lineage), weights


INITIAL = Version("engine", 0)


@dataclass
class Engine:
    """One replica."""

    version: Version = INITIAL
    weights: Weights = ()
    fence: int = 0

    def load(self, token: int, version: Version, weights: Weights) -> None:
        if token < self.fence:
            raise RefusedError("stale fence")
        self.fence = token
        self.version, self.weights = version, weights
