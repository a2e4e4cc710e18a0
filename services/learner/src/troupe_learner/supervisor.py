"""Keeps a generation of ranks alive: forms the next one when the current one is lost.

The owner hears of a loss before anything else happens, and gets every new generation to bring it to the right state before
it is used. Generations that end again and again, in forming or at work, without a step being committed in between end the
attempts, with the reason kept: it names the rank, and where it was. What is no attempt: a full disk (ranks need room for
their logs and for where they meet, and are started again when there is some), the wait for hosts that are not there, and
the end of ranks that had nothing to do, which tells nothing of the next generation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from troupe_contracts.errors import Unavailable
from troupe_contracts.log import get_logger

from troupe_learner.disk import no_room
from troupe_learner.gang import Generation, GenerationLost, Host, RankPlan, launch

# Generations in a row that end without a committed step.
ATTEMPTS: Final = 5
# Seconds before a generation is formed again that could not be; doubled each time.
BACKOFF_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
# Between two looks at a full disk.
ROOM_SECONDS: Final = 5.0
_log = get_logger()


class Hosts(Protocol):
    """Where ranks run."""

    async def gathered(self) -> Sequence[Host]:
        """All of them, in the order of their ranks, once they are there."""

    def missing(self) -> str:
        """Which are not there, and why; empty if all are."""


class Supervisor:
    """Holds the current generation. `detail` says why there was a loss; `failed` that no more is tried; `disk_full` that
    somebody has to make room first.
    """

    def __init__(
        self,
        plan: RankPlan,
        hosts: Hosts,
        on_lost: Callable[[], Awaitable[None]],
        prepare: Callable[[Generation], Awaitable[None]],
        on_failed: Callable[[], Awaitable[None]],
    ) -> None:
        self.generation: Generation | None = None
        self.detail = ""
        self.failed = False
        self.disk_full = False
        self._plan = plan
        self._hosts = hosts
        self._fruitless = 0
        self._on_lost = on_lost
        self._prepare = prepare
        self._on_failed = on_failed
        self.newest = 0
        """Number of the newest generation, formed or not."""
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> Generation:
        """Forms the first generation; a loss from here on is repaired.

        Raises:
            GenerationLost: it ended before it was ready.
        """
        hosts = await self._hosts.gathered()
        self.newest += 1
        self.generation = await launch(self.newest, self._plan, hosts)
        self._watch = asyncio.create_task(self._repair())
        return self.generation

    async def close(self) -> None:
        """Ends supervision, then the ranks."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.generation is not None:
            await self.generation.close()

    @property
    def reason(self) -> str:
        """Why there was a loss, and which hosts the next generation waits for."""
        waits_for = "" if self.generation is not None or self.failed else self._hosts.missing()
        return "; ".join(filter(None, (self.detail, waits_for)))

    def committed(self) -> None:
        """The generation has done what it is there for: earlier ends are forgiven."""
        self._fruitless = 0

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
            f"the gang of ranks is being formed again, wait for READY: {self.reason}",
            retry_after_seconds=_RETRY_SECONDS,
        )

    async def _repair(self) -> None:
        while self.generation is not None:
            self.detail = await self.generation.lost()
            self._fruitless += not self.generation.was_idle
            self.generation = None
            _log.error("the gang was lost", reason=self.detail)
            await self._on_lost()
            self.generation = await self._formed()
        self.detail = f"{ATTEMPTS} generations in a row ended without a committed step, the last one: {self.detail}"
        self.failed = True
        await self._on_failed()

    async def _formed(self) -> Generation | None:
        failures = 0
        while self._fruitless < ATTEMPTS:
            if failures:
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
            hosts = await self._hosts.gathered()
            self.newest += 1
            try:
                generation = await launch(self.newest, self._plan, hosts)
                try:
                    await self._prepare(generation)
                except BaseException:
                    await generation.close()
                    raise
            except (GenerationLost, OSError) as error:
                self.detail = str(error)
                _log.error("a generation was not formed", number=self.newest, reason=self.detail)
                if await self._waited_for_room():
                    self._fruitless = failures = 0
                else:
                    self._fruitless += 1
                    failures += 1
            else:
                _log.info("a generation was formed", number=self.newest)
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
