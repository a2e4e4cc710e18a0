"""One change of the weights at a time, each an operation; reads wait for their turn between changes.

A turn is held from a command to the end of what it changes in the front, so that weights never go under another version's
name. Whatever can go wrong with a change ends in its operation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from troupe_contracts.errors import FailedPrecondition, ServiceError

from troupe_learner.gang import CommandRefused, GenerationLost
from troupe_learner.ledger import AppliedStep
from troupe_learner.operations import Loaded, Operation, Operations

_Result = TypeVar("_Result")


class Changes:
    """The changes of one learner. For use on the event loop only."""

    def __init__(self) -> None:
        self.operations = Operations()
        self.now: Operation | None = None
        """What changes the weights now."""
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def under_way(self, subject: str) -> Operation | None:
        """The operation that does this very thing now."""
        return self.now if self.now is not None and self.now.subject == subject else None

    def begin(self, subject: str, work: Callable[[Operation], Awaitable[None]]) -> Operation:
        """Starts a change.

        Raises:
            FailedPrecondition: another one is under way.
        """
        if self.now is not None:
            raise FailedPrecondition(self.now.name, "is under way: wait for its end (WatchOperation), then call again")
        operation = self.now = self.operations.begin(subject)
        self._spawn(self._carry_out(operation, work))
        return operation

    def done(self, subject: str, *, step: AppliedStep | None = None, checkpoint: Loaded | None = None) -> Operation:
        """The operation of what is so already."""
        operation = self.operations.begin(subject)
        operation.finish(step=step, checkpoint=checkpoint)
        return operation

    async def read(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Takes a turn that goes on when the caller goes away: the ranks still read and write its files."""

        async def turn() -> _Result:
            async with self._turn:
                return await work

        return await asyncio.shield(self._spawn(turn()))

    async def close(self) -> None:
        """Ends what is under way; watchers are told. Safe to call again."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_out(self, operation: Operation, work: Callable[[Operation], Awaitable[None]]) -> None:
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
            self.now = None
            if not operation.now.done:
                operation.fail("UNAVAILABLE", f"{operation.subject} ended with the learner")

    def _spawn(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
