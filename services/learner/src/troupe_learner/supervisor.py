"""Keeps a generation of ranks alive: forms the next one when the current one is lost.

The owner hears of a loss before anything else happens, and gets every new generation to bring it to the right state before
it is used. Generations that end again and again before they are ready end the attempts, with the reason kept. A full disk
is no attempt: ranks need room for their logs and for where they meet, and are started again when there is some.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

from troupe_contracts.errors import Unavailable
from troupe_contracts.log import get_logger

from troupe_learner.disk import no_room
from troupe_learner.gang import Generation, GenerationLost, RankPlan, launch

# Attempts in a row to form a generation, and seconds before the second; doubled each time.
ATTEMPTS: Final = 5
BACKOFF_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
# Between two looks at a full disk.
ROOM_SECONDS: Final = 5.0
_log = get_logger()


class Supervisor:
    """Holds the current generation. `detail` says why there was a loss; `failed` that no more is tried; `disk_full` that
    somebody has to make room first.
    """

    def __init__(
        self,
        plan: RankPlan,
        on_lost: Callable[[], Awaitable[None]],
        prepare: Callable[[Generation], Awaitable[None]],
        on_failed: Callable[[], Awaitable[None]],
    ) -> None:
        self.generation: Generation | None = None
        self.detail = ""
        self.failed = False
        self.disk_full = False
        self._plan = plan
        self._on_lost = on_lost
        self._prepare = prepare
        self._on_failed = on_failed
        self._numbers = itertools.count(1)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> Generation:
        """Forms the first generation; a loss from here on is repaired.

        Raises:
            GenerationLost: it ended before it was ready.
        """
        self.generation = await launch(next(self._numbers), self._plan)
        self._watch = asyncio.create_task(self._repair())
        return self.generation

    async def close(self) -> None:
        """Ends supervision, then the ranks."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.generation is not None:
            await self.generation.close()

    def ready(self) -> Generation:
        """The current generation.

        Raises:
            Unavailable: there is none now.
        """
        if self.generation is not None:
            return self.generation
        if self.failed:
            raise Unavailable(f"the gang of ranks failed for good, restart the learner: {self.detail}")
        raise Unavailable(
            f"the gang of ranks is being formed again, wait for READY: {self.detail}",
            retry_after_seconds=_RETRY_SECONDS,
        )

    async def _repair(self) -> None:
        while self.generation is not None:
            self.detail = await self.generation.lost()
            self.generation = None
            _log.error("the gang was lost", reason=self.detail)
            await self._on_lost()
            self.generation = await self._formed()
        self.failed = True
        await self._on_failed()

    async def _formed(self) -> Generation | None:
        attempt = 0
        while attempt < ATTEMPTS:
            if attempt:
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            number = next(self._numbers)
            try:
                generation = await launch(number, self._plan)
                try:
                    await self._prepare(generation)
                except BaseException:
                    await generation.close()
                    raise
            except (GenerationLost, OSError) as error:
                self.detail = str(error)
                _log.error("a generation was not formed", number=number, reason=self.detail)
                attempt = 0 if await self._waited_for_room() else attempt + 1
            else:
                _log.info("a generation was formed", number=number)
                return generation
        return None

    async def _waited_for_room(self) -> bool:
        """Waits until something can be written; whether it had to."""
        while problem := await asyncio.to_thread(no_room, self._plan.folder):
            if not self.disk_full:
                _log.error("the ranks wait for room", reason=problem)
            self.disk_full, self.detail = True, f"the ranks are started again when there is room: {problem}"
            await asyncio.sleep(ROOM_SECONDS)
        waited, self.disk_full = self.disk_full, False
        return waited
