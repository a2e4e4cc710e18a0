"""Ports of this machine that lead to pods, kept open by a thread of their own, so that blocking code can use them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager

Forward = Callable[[], AbstractAsyncContextManager[str]]


class Forwards:
    """Open until the block of `forwards` ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: AsyncExitStack) -> None:
        self._loop = loop
        self._stack = stack

    def open(self, forward: Forward) -> str:
        """host:port that leads where the forward says."""

        async def enter() -> str:
            return await self._stack.enter_async_context(forward())

        return asyncio.run_coroutine_threadsafe(enter(), self._loop).result()


@contextmanager
def forwards() -> Iterator[Forwards]:
    """Ports that stay open while the block runs."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever, name="forwards", daemon=True)
    thread.start()
    try:
        yield Forwards(loop, stack)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
