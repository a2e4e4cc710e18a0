"""The stream between front and agent, as either end uses it: what is to be sent, in order, and signs of life.

Each end sends a heartbeat every `HEARTBEAT_SECONDS` whatever else it sends, and takes `SILENCE_SECONDS` without a message
for the end of the other: a process that hangs or is stopped, a machine or network that is gone without a word. Not HTTP/2's
keepalive: that is answered by gRPC's own threads, also where nobody reads any more.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Generic, TypeVar

from troupe_learner.channel import ChannelClosed

HEARTBEAT_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 8.0
# Pieces of files that wait to be sent: the sender reads no further ahead.
_PIECES_WAITING: Final = 8

_Message = TypeVar("_Message")


class Silence(Exception):
    """The other end gave no sign of life."""

    def __init__(self) -> None:
        super().__init__(f"no sign of life for {SILENCE_SECONDS:g} s")


class Outbox(Generic[_Message]):
    """Messages to be sent, first in, first out. For use on the event loop only."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[_Message, bool] | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_PIECES_WAITING)
        self._closed = False

    def say(self, message: _Message) -> None:
        """Never waits."""
        self._waiting.put_nowait((message, False))

    async def ship(self, piece: _Message) -> None:
        """Waits while many pieces are still to be sent.

        Raises:
            ChannelClosed: nothing is sent any more.
        """
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise ChannelClosed("the stream is over")
        self._waiting.put_nowait((piece, True))

    def close(self) -> None:
        """Nothing follows; whoever waits to ship something need not. Safe to call again."""
        self._closed = True
        self._room.release()
        self._waiting.put_nowait(None)

    async def messages(self) -> AsyncIterator[_Message]:
        """What gRPC sends, to the end."""
        while (each := await self._waiting.get()) is not None:
            message, is_piece = each
            if is_piece:
                self._room.release()
            yield message

    async def beat(self, sign: _Message) -> None:
        """Says a sign of life again and again."""
        while True:
            self.say(sign)
            await asyncio.sleep(HEARTBEAT_SECONDS)


async def heard(messages: AsyncIterator[_Message]) -> AsyncGenerator[_Message, None]:
    """The other end's messages. How long the reader takes for each is not counted.

    Raises:
        Silence: none came for too long.
    """
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Silence from None
        yield message
