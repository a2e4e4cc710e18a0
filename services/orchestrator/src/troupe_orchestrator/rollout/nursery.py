"""A task group that raises its first failure itself instead of a group of one.

`except*` wraps whatever its body raises into a new group, so code between layers would have to unwrap at every level.
"""

import asyncio
from types import TracebackType


class Nursery(asyncio.TaskGroup):
    """Like TaskGroup: the first failure cancels the others, and all have ended when the block is left."""

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exception_type, exception, traceback)
        except BaseExceptionGroup as group:
            raise _leaf(group) from None


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first
