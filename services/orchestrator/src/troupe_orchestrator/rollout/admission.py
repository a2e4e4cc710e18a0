"""Who may begin: nothing waits while it holds what another needs.

Three kinds of work, each with all that it holds while it runs:

- tests of a solution: a test seat of a sandbox;
- an execution: a workflow seat of a sandbox *and* a seat of the executor that plays its turns;
- a proposal of designs: a seat of the designer's engine for each design.

The seats of one piece of work are taken together or not at all, and given back before the next piece of the same task is
asked for: an execution has ended when its tests ask, a proposal ends whether or not its executions were let in. So whoever
holds a seat needs nothing but the service itself to go on, and no circle of waiting can form.

Tests go first: while one waits no execution begins, which ends groups before new ones are opened and keeps the sandboxes'
processors for them. Executions go before proposals for the same reason. Within a kind the scopes (each run, each eval job,
all questions together) take turns, each in the order in which it asked, and one that cannot be placed keeps its turn.

Not all executions come from proposals (an eval job may run fixed designs), and smaller proposals of others find seats
sooner. So the first proposal of each scope counts who is let in at its engines before it: after as many as these have seats
it is its turn, and nobody else begins there until it has been let in. A seat that is given back costs a look for each scope
that waits, so of these there are few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from troupe_orchestrator.fleet import PolicyFleet, Replica, SandboxFleet, SandboxReplica
from troupe_orchestrator.rollout.faults import InfrastructureFaultError
from troupe_orchestrator.rotation import Rotation, Seats

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Placed(Generic[P]):
    """Where a piece of work goes, and the seats that it holds."""

    place: P
    seats: tuple[tuple[Seats, int], ...]


@dataclass(frozen=True, slots=True)
class ExecutionPlace:
    """Who runs a script, and who plays its agents."""

    sandbox: SandboxReplica
    executor: Replica


@dataclass(eq=False, slots=True)
class _Waiting(Generic[P]):
    find: Callable[[], Placed[P] | None]
    needs: tuple[Rotation[Any], ...]
    placed: asyncio.Future[Placed[P]]
    may_pass: Callable[[], int] = lambda: 0
    """Of a proposal: how many others may be let in at its engines before it."""
    passed: int = 0
    """Of the first proposal of a scope: how many were."""

    def is_due(self) -> bool:
        """Whether it has let enough others pass. One that no seat would help holds nobody back."""
        return self.passed >= self.may_pass() and all(each.serving() for each in self.needs)


class _Line:
    """Who waits for one kind, by scope. The scope that was served longest ago comes first."""

    def __init__(self) -> None:
        self._scopes: dict[str, deque[_Waiting[Any]]] = {}

    def add(self, scope: str, waiting: _Waiting[Any]) -> None:
        self._scopes.setdefault(scope, deque()).append(waiting)

    def serve_next(self, proposals: _Line | None = None) -> bool:
        """Place the first who can be placed; false where nobody can.

        Args:
            proposals: that wait, each of which may hold the others back.
        """
        return any(self._serve_one(scope, proposals) for scope in list(self._scopes))

    def holds_back(self, other: _Waiting[Any]) -> bool:
        """Whether it is the turn of a proposal of this line, which wants the same engines as `other`."""
        due = next((each for each in self._first_ones() if _rivals(each, other) and each.is_due()), other)
        return due is not other

    def let_pass(self, other: _Waiting[Any]) -> None:
        """Count who was let in before the proposals of this line."""
        for each in self._first_ones():
            if each is not other and _rivals(each, other):
                each.passed += 1

    def empty(self) -> bool:
        for scope in list(self._scopes):
            self._drop_gone(scope)
        return not self._scopes

    def waiting(self) -> int:
        return sum(not each.placed.done() for queue in tuple(self._scopes.values()) for each in tuple(queue))

    def _first_ones(self) -> list[_Waiting[Any]]:
        """The first of each scope, the scope whose turn it is first."""
        return [queue[0] for scope in list(self._scopes) if (queue := self._drop_gone(scope))]

    def _serve_one(self, scope: str, proposals: _Line | None) -> bool:
        queue = self._drop_gone(scope)
        if not queue:
            return False
        waiting = queue[0]
        outage = next((each.outage for each in waiting.needs if each.outage), "")
        if outage:
            service = next(each.service for each in waiting.needs if each.outage)
            waiting.placed.set_exception(InfrastructureFaultError(service, outage))
        else:
            if proposals is not None and proposals.holds_back(waiting):
                return False
            found = waiting.find()
            if found is None:
                return False
            for seats, count in found.seats:
                seats.taken += count
            if proposals is not None:
                proposals.let_pass(waiting)
            waiting.placed.set_result(found)
        queue.popleft()
        # Served last: the others' turn.
        del self._scopes[scope]
        if queue:
            self._scopes[scope] = queue
        return True

    def _drop_gone(self, scope: str) -> deque[_Waiting[Any]] | None:
        """The scope's queue without those who no longer wait at its head; None if nobody does."""
        queue = self._scopes.get(scope)
        while queue and queue[0].placed.done():
            queue.popleft()
        if not queue:
            self._scopes.pop(scope, None)
            return None
        return queue


class Admission:
    """Lets work in. One for all runs, jobs and questions of an orchestrator."""

    def __init__(self, sandboxes: SandboxFleet) -> None:
        self._sandboxes = sandboxes
        self._tests, self._executions, self._designs = _Line(), _Line(), _Line()
        self._watched: WeakSet[Rotation[Any]] = WeakSet()
        self._watch(sandboxes)

    def waiting(self) -> dict[str, int]:
        """How much work of each kind waits to be let in. Safe from any thread, and then of about now."""
        kinds = {"tests": self._tests, "executions": self._executions, "designs": self._designs}
        return {kind: line.waiting() for kind, line in kinds.items()}

    def suspect(self, sandbox: SandboxReplica, why: str) -> None:
        """A sandbox failed: it gets no more work until it answers again."""
        self._sandboxes.suspect(sandbox, why)

    @contextlib.asynccontextmanager
    async def tests(self, scope: str) -> AsyncIterator[SandboxReplica]:
        """A seat for the tests of one solution.

        Raises:
            InfrastructureFaultError: no sandbox has served for as long as work waits.
        """

        def find() -> Placed[SandboxReplica] | None:
            sandbox = _most_room(self._sandboxes.serving(), lambda each: each.tests)
            return None if sandbox is None else Placed(sandbox, ((sandbox.tests, 1),))

        async with self._let_in(self._tests, scope, find, self._sandboxes) as place:
            yield place

    @contextlib.asynccontextmanager
    async def execution(self, scope: str, key: str, executors: PolicyFleet) -> AsyncIterator[ExecutionPlace]:
        """Seats for one execution.

        Args:
            key: chooses among executors with room, so that turns of one execution share a prefix cache.

        Raises:
            InfrastructureFaultError: no sandbox or no executor has served for as long as work waits.
        """

        def find() -> Placed[ExecutionPlace] | None:
            sandbox = _most_room(self._sandboxes.serving(), lambda each: each.workflows)
            executor = executors.with_room(key) if sandbox is not None else None
            if sandbox is None or executor is None:
                return None
            return Placed(ExecutionPlace(sandbox, executor), ((sandbox.workflows, 1), (executor.seats, 1)))

        async with self._let_in(self._executions, scope, find, self._sandboxes, executors) as place:
            yield place

    @contextlib.asynccontextmanager
    async def designs(self, scope: str, key: str, count: int, designers: PolicyFleet) -> AsyncIterator[Replica]:
        """Seats for a proposal of `count` designs; all that an engine has, where it has fewer.

        Raises:
            InfrastructureFaultError: no designer has served for as long as work waits.
        """

        def find() -> Placed[Replica] | None:
            if not designers.serving():
                return None
            for engine in sorted(designers.engines.serving(), key=lambda each: -each.seats.free):
                wanted = min(count, engine.seats.total)
                if engine.seats.free >= wanted:
                    designer = engine if designers.engines is designers else designers.pick(key)
                    return Placed(designer, ((engine.seats, wanted),))
            return None

        def seats() -> int:
            return sum(engine.seats.total for engine in designers.engines.serving())

        async with self._let_in(self._designs, scope, find, designers, designers.engines, may_pass=seats) as place:
            yield place

    @contextlib.asynccontextmanager
    async def _let_in(
        self,
        line: _Line,
        scope: str,
        find: Callable[[], Placed[P] | None],
        *needs: Rotation[Any],
        may_pass: Callable[[], int] = lambda: 0,
    ) -> AsyncIterator[P]:
        for rotation in needs:
            self._watch(rotation)
        waiting = _Waiting(find, needs, asyncio.get_running_loop().create_future(), may_pass)
        line.add(scope, waiting)
        self._serve()
        try:
            placed = await waiting.placed
        except asyncio.CancelledError:
            if waiting.placed.done() and not waiting.placed.cancelled() and waiting.placed.exception() is None:
                self._give_back(waiting.placed.result())
            waiting.placed.cancel()
            # A test that no longer waits may be all that held executions back.
            self._serve()
            raise
        try:
            yield placed.place
        finally:
            self._give_back(placed)

    def _give_back(self, placed: Placed[Any]) -> None:
        for seats, count in placed.seats:
            seats.taken -= count
        self._serve()

    def _serve(self) -> None:
        while self._tests.serve_next():
            pass
        if self._tests.empty():
            while self._executions.serve_next(self._designs) or self._designs.serve_next(self._designs):
                pass

    def _watch(self, rotation: Rotation[Any]) -> None:
        """Serve again when a member comes back."""
        if rotation not in self._watched:
            self._watched.add(rotation)
            rotation.on_change(self._serve)


def _rivals(proposal: _Waiting[Any], other: _Waiting[Any]) -> bool:
    return any(each in other.needs for each in proposal.needs)


def _most_room(sandboxes: Sequence[SandboxReplica], seats: Callable[[SandboxReplica], Seats]) -> SandboxReplica | None:
    best = max(sandboxes, key=lambda each: seats(each).free, default=None)
    return best if best is not None and seats(best).free else None
