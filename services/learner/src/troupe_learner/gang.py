"""One generation of the gang: the ranks that were started together, until the first of them ends.

- Ranks are started with vfork and exec (no Python code runs in between), so that starting them while gRPC
  threads run is safe; they sit in sessions of their own, so that Ctrl-C reaches the front alone.
- A rank that ends, for whatever reason, ends the generation at once: the others may be waiting for it in a collective.
  `lost` then holds why, with the end of that rank's log.
- A command of which no rank gives a sign of life for `RankPlan.stall_seconds` ends the generation too: ranks that hang,
  in a collective or a device, would hold the learner for ever. How long a command may take in all is nobody's business:
  each forward pass and each tensor that is written is a sign.
- Commands run one at a time, to the end, even if who asked has gone: a reply that nobody reads would be taken for the
  next one's.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from troupe_learner.channel import ChannelClosed, FrontChannel, Message, open_front_channel

Progress = Callable[[float], None]

_LOG_TAIL_BYTES: Final = 3000


class GenerationLost(Exception):
    """A rank ended; nothing of this generation is left."""


class CommandRefused(Exception):
    """The ranks refused a command and are as they were. `code` names a gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RankPlan:
    """What every rank is told first; `start` is passed on as it is, with rank and rendezvous added."""

    ranks: int
    threads: int
    start: Message
    folder: Path
    stall_seconds: float


@dataclass(frozen=True)
class _Member:
    rank: int
    process: asyncio.subprocess.Process
    channel: FrontChannel
    log: Path


class Generation:
    """Ranks that work together. Made by `launch`; of no use after `lost`."""

    def __init__(self, number: int, members: list[_Member], rendezvous: Path, stall_seconds: float) -> None:
        self.number = number
        self.description: Message = {}
        self._members = members
        self._rendezvous = rendezvous
        self._stall_seconds = stall_seconds
        self._stalled = ""
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[list[Message]]] = set()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._await_first_end())

    async def lost(self) -> str:
        """Waits until a rank has ended and all are gone; returns why."""
        return await asyncio.shield(self._lost)

    async def run(self, command: Message, on_progress: Progress | None = None) -> Message:
        """One command on all ranks; returns rank 0's result.

        Raises:
            CommandRefused: at least one rank refused; none changed.
            GenerationLost: a rank ended before it had answered.
        """
        task = asyncio.create_task(self._command([command] * len(self._members), on_progress))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return (await asyncio.shield(task))[0]

    async def close(self) -> None:
        """Ends the ranks and waits until they are gone."""
        self._kill()
        await self._watch

    async def _command(self, messages: list[Message], on_progress: Progress | None) -> list[Message]:
        async with self._turn:
            try:
                for member, message in zip(self._members, messages, strict=True):
                    await member.channel.send(message)
                replies = await self._answers(on_progress)
            except ChannelClosed:
                raise GenerationLost(await self.lost()) from None
            except TimeoutError:
                self._stalled = (
                    f"ended, since no rank gave a sign of progress in {messages[0].get('command', 'starting')!r} for "
                    f"{self._stall_seconds:g} s (TROUPE_STALL_SECONDS)"
                )
                self._kill()
                raise GenerationLost(await self.lost()) from None
        refusals = list(dict.fromkeys((r["code"], r["message"]) for r in replies if r["kind"] == "refused"))
        if refusals:
            raise CommandRefused(refusals[0][0], "; ".join(message for _, message in refusals))
        return [reply["result"] for reply in replies]

    async def _answers(self, on_progress: Progress | None) -> list[Message]:
        """What each rank says at the end of a command.

        Raises:
            ChannelClosed: a rank is gone.
            TimeoutError: none of them gave a sign for too long.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._stall_seconds) as limit:

            async def answer(member: _Member) -> Message:
                while True:
                    message = await member.channel.receive()
                    limit.reschedule(loop.time() + self._stall_seconds)
                    if message["kind"] != "progress":
                        return message
                    if on_progress is not None and member.rank == 0:
                        on_progress(message["value"])

            return await asyncio.gather(*(answer(member) for member in self._members))

    async def _await_first_end(self) -> None:
        waits = {asyncio.create_task(member.process.wait()): member for member in self._members}
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        first = waits[next(iter(done))]
        why = self._stalled or _ending(first.process.returncode)
        why = f"{why} (rank {first.rank}, generation {self.number})"
        self._kill()
        await asyncio.wait(waits)
        for member in self._members:
            member.channel.close()
        self._rendezvous.unlink(missing_ok=True)
        tail = await asyncio.to_thread(_tail, first.log)
        self._lost.set_result(f"{why}: {tail}" if tail else why)

    def _kill(self) -> None:
        for member in self._members:
            with suppress(ProcessLookupError):
                member.process.kill()


async def launch(number: int, plan: RankPlan) -> Generation:
    """Starts all ranks and waits until each has built its engine.

    Raises:
        GenerationLost: a rank ended while starting; carries the end of its log.
    """
    rendezvous = plan.folder / f"rendezvous-{number}"
    rendezvous.unlink(missing_ok=True)
    members: list[_Member] = []
    try:
        for rank in range(plan.ranks):
            members.append(await _spawn(rank, plan))  # noqa: PERF401 - `members` must be known if one fails
    except BaseException:
        for member in members:
            member.process.kill()
        raise
    generation = Generation(number, members, rendezvous, plan.stall_seconds)
    starts = [{**plan.start, "rank": rank, "rendezvous": str(rendezvous)} for rank in range(plan.ranks)]
    try:
        generation.description = (await generation._command(starts, None))[0]
    except BaseException:
        await generation.close()
        raise
    return generation


async def _spawn(rank: int, plan: RankPlan) -> _Member:
    log = plan.folder / f"rank-{rank}.log"
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "troupe_learner.rank",
            str(theirs.fileno()),
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=_environment(rank, plan),
        )
    return _Member(rank, process, await open_front_channel(ours), log)


def _environment(rank: int, plan: RankPlan) -> dict[str, str]:
    """The front's environment without our own settings, and what torch, gloo and DeepSpeed read from there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
    return kept | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(plan.ranks),
        "OMP_NUM_THREADS": str(plan.threads),
        # Threads that wait sleep: spinning costs other processes their cores, and on a busy machine the step itself
        # (measured with 2 threads at load 9: 42 s instead of 12 s).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        # The end of a rank's log is what an error carries.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _tail(log: Path) -> str:
    """The last lines of a rank's log: where a traceback ends."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip()
