"""One generation of the gang: the ranks that were started together, until the first of them ends.

- Ranks are on one host or several (`local_ranks`, `agent_link`), always the same ones on each: rank r of a generation is
  where rank r of the last one was.
- A rank that ends, for whatever reason, ends the generation at once: the others may be waiting for it in a collective.
  `lost` then holds why, with the end of that rank's log.
- A command of which no rank gives a sign of life for `RankPlan.stall_seconds` ends the generation too: ranks that hang,
  in a collective or a device, would hold the learner for ever. How long a command may take in all is nobody's business:
  each forward pass and each tensor that is written is a sign.
- Commands run one at a time, to the end, even if who asked has gone: a reply that nobody reads would be taken for the
  next one's.
- What a command carries to other hosts ends with the generation, before `lost` says so: the next one has the same hosts.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Protocol

from troupe_learner.channel import ChannelClosed, Message

Progress = Callable[[float], None]

# Of ranks on several machines, the news of the end that was first may come after the news of what it led to.
_NEWS_SECONDS: Final = 0.5


class GenerationLost(Exception):
    """A rank ended; nothing of this generation is left."""


class CommandRefused(Exception):
    """The ranks refused a command and are as they were. `code` names a gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cause(IntEnum):
    """What ended a rank. Of several ends the smallest is the cause: ranks end with a status when a peer is gone."""

    SIGNAL = 0
    LOST_HOST = 1
    STATUS = 2


@dataclass(frozen=True)
class Ending:
    """How a rank ended, in words."""

    cause: Cause
    how: str


class Rank(Protocol):
    """A process of the gang, as the front sees it."""

    @property
    def number(self) -> int:
        """Counted over all hosts, from 0."""

    @property
    def place(self) -> str:
        """Where it runs, to be put behind its number: ", pod learner-1"; empty where there is one place only."""

    async def send(self, message: Message) -> None:
        """Raises ChannelClosed if it is gone."""

    async def receive(self) -> Message:
        """Its next message; raises ChannelClosed if it is gone."""

    def kill(self) -> None:
        """Ends it; does not wait."""

    async def ended(self) -> Ending:
        """Waits for its end."""

    async def last_words(self) -> str:
        """The end of its log, once it is gone."""

    def close(self) -> None:
        """Nothing more is said to it or heard."""


class Host(Protocol):
    """A machine that runs ranks."""

    async def start(self, generation: int, ranks: range) -> Sequence[Rank]:
        """Starts ranks; raises OSError, and leaves none, if that cannot be."""

    async def carry(self, command: Message) -> None:
        """Brings there what its ranks read in a command to come, and takes what they write.

        Raises:
            CommandRefused: it cannot be had there.
            ChannelClosed: the host is gone.
        """

    async def tidy(self) -> None:
        """The command is done."""


@dataclass(frozen=True)
class RankPlan:
    """What every rank is told first; `start` is passed on as it is, with rank and rendezvous added."""

    ranks: int
    threads: int
    start: Message
    folder: Path
    stall_seconds: float
    interface: str = "lo"
    """Network interface on which ranks meet; empty leaves it to gloo: that of the host's own name."""


class Generation:
    """Ranks that work together. Made by `launch`; of no use after `lost`."""

    def __init__(
        self,
        number: int,
        hosts: Sequence[Host],
        ranks: Sequence[Rank],
        stall_seconds: float,
        rendezvous: Path | None = None,
    ) -> None:
        self.number = number
        self.description: Message = {}
        self.was_idle = False
        """Whether it had no command when it was lost."""
        self._hosts = hosts
        self._ranks = ranks
        self._stall_seconds = stall_seconds
        self._rendezvous = rendezvous
        self._stalled = ""
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[list[Message]]] = set()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._await_first_end())

    async def lost(self) -> str:
        """Waits until a rank has ended, all are gone, and so is what was on its way to them; returns why."""
        why = await asyncio.shield(self._lost)
        async with self._turn:
            return why

    async def run(self, command: Message, on_progress: Progress | None = None) -> Message:
        """One command on all ranks; returns rank 0's result.

        Raises:
            CommandRefused: at least one rank refused; none changed.
            GenerationLost: a rank ended before it had answered.
        """
        task = asyncio.create_task(self._command([command] * len(self._ranks), on_progress))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return (await asyncio.shield(task))[0]

    async def close(self) -> None:
        """Ends the ranks and waits until they are gone."""
        self._kill()
        await self._watch

    async def begin(self, start: Message) -> None:
        """Has the ranks build their engines and meet: at a file of this machine, or else at a port that rank 0 opens.

        Raises:
            GenerationLost: a rank ended before it was ready.
        """
        meeting = f"file://{self._rendezvous}"
        if self._rendezvous is None:
            (opened,) = await self._command([{"command": "listen"}], None)
            meeting = f"tcp://127.0.0.1:{opened['port']}"
        given = {**start, "command": "start", "rendezvous": meeting}
        self.description = (await self._command([{**given, "rank": each.number} for each in self._ranks], None))[0]

    async def _command(self, messages: Sequence[Message], on_progress: Progress | None) -> list[Message]:
        """Tells the first ranks a message each, and returns what they answer."""
        told = self._ranks[: len(messages)]
        async with self._turn:
            try:
                await self._carry(messages[0])
                for rank, message in zip(told, messages, strict=True):
                    await rank.send(message)
                replies = await self._answers(told, on_progress)
            except ChannelClosed:
                raise GenerationLost(await asyncio.shield(self._lost)) from None
            except TimeoutError:
                self._stalled = (
                    f"ended, since no rank gave a sign of progress in {messages[0]['command']!r} for "
                    f"{self._stall_seconds:g} s (TROUPE_STALL_SECONDS)"
                )
                self._kill()
                raise GenerationLost(await asyncio.shield(self._lost)) from None
            finally:
                for host in self._hosts:
                    await host.tidy()
        refusals = list(dict.fromkeys((r["code"], r["message"]) for r in replies if r["kind"] == "refused"))
        if refusals:
            raise CommandRefused(refusals[0][0], "; ".join(message for _, message in refusals))
        return [reply["result"] for reply in replies]

    async def _carry(self, command: Message) -> None:
        """To all hosts at once, to the end of each.

        Raises:
            ChannelClosed: a rank is gone: what is not there yet need not come.
        """
        carrying = asyncio.gather(*(host.carry(command) for host in self._hosts), return_exceptions=True)
        either: list[asyncio.Future[Any]] = [carrying, self._lost]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not carrying.done():
                raise ChannelClosed("a rank is gone")
        finally:
            carrying.cancel()
            await asyncio.wait([carrying])
        for problem in carrying.result():
            if problem is not None:
                raise problem

    async def _answers(self, told: Sequence[Rank], on_progress: Progress | None) -> list[Message]:
        """What each rank says at the end of a command.

        Raises:
            ChannelClosed: a rank is gone.
            TimeoutError: none of them gave a sign for too long.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._stall_seconds) as limit:

            async def answer(rank: Rank) -> Message:
                while True:
                    message = await rank.receive()
                    limit.reschedule(loop.time() + self._stall_seconds)
                    if message["kind"] != "progress":
                        return message
                    if on_progress is not None and rank.number == 0:
                        on_progress(message["value"])

            return await asyncio.gather(*(answer(rank) for rank in told))

    async def _await_first_end(self) -> None:
        ended: list[tuple[Rank, Ending]] = []

        async def end_of(rank: Rank) -> None:
            ended.append((rank, await rank.ended()))

        waits = [asyncio.create_task(end_of(rank)) for rank in self._ranks]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        self.was_idle = not self._turn.locked()
        if len(self._hosts) > 1 and not self._stalled:
            await asyncio.wait(waits, timeout=_NEWS_SECONDS)
        rank, ending = min(ended, key=lambda each: each[1].cause)
        why = f"{self._stalled or ending.how} (rank {rank.number}{rank.place}, generation {self.number})"
        self._kill()
        await asyncio.wait(waits)
        for each in self._ranks:
            each.close()
        if self._rendezvous is not None:
            self._rendezvous.unlink(missing_ok=True)
        words = await rank.last_words()
        self._lost.set_result(f"{why}: {words}" if words else why)

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()


async def launch(number: int, plan: RankPlan, hosts: Sequence[Host]) -> Generation:
    """Starts all ranks and waits until each has built its engine.

    Raises:
        GenerationLost: a rank ended while starting; carries the end of its log.
        OSError: a process could not be started.
    """
    rendezvous = plan.folder / f"rendezvous-{number}" if len(hosts) == 1 else None
    if rendezvous is not None:
        rendezvous.unlink(missing_ok=True)
    each = plan.ranks // len(hosts)
    ranks: list[Rank] = []
    try:
        for index, host in enumerate(hosts):
            ranks += await host.start(number, range(index * each, (index + 1) * each))
    except BaseException:
        for rank in ranks:
            rank.kill()
        raise
    generation = Generation(number, hosts, ranks, plan.stall_seconds, rendezvous)
    try:
        await generation.begin(plan.start)
    except BaseException:
        await generation.close()
        raise
    return generation
