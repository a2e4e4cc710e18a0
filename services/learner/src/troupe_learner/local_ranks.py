"""Ranks that are children of this process: of the front on its own machine, of the gang agent on the others.

Ranks are started with vfork and exec (no Python code runs in between), so that starting them while gRPC threads run is safe;
they sit in sessions of their own, so that Ctrl-C reaches their parent alone, and die with it by the kernel's doing.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from troupe_learner.channel import FrontChannel, Message, open_front_channel
from troupe_learner.gang import Cause, Ending, RankPlan

_LOG_TAIL_BYTES: Final = 3000


@dataclass(frozen=True)
class LocalRank:
    """A child."""

    number: int
    process: asyncio.subprocess.Process
    channel: FrontChannel
    log: Path
    place: str = ""

    async def send(self, message: Message) -> None:
        await self.channel.send(message)

    async def receive(self) -> Message:
        return await self.channel.receive()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self) -> Ending:
        code = await self.process.wait()
        if code < 0:
            return Ending(Cause.SIGNAL, f"killed by {signal.Signals(-code).name}")
        return Ending(Cause.STATUS, f"ended with status {code}")

    async def last_words(self) -> str:
        return await asyncio.to_thread(_tail, self.log)

    def close(self) -> None:
        self.channel.close()


class LocalHost:
    """This machine. `first` is the first of its ranks, `place` what it is called where there are others."""

    def __init__(self, plan: RankPlan, first: int = 0, place: str = "") -> None:
        self._plan = plan
        self._first = first
        self._place = place

    async def start(self, generation: int, ranks: range) -> Sequence[LocalRank]:
        """See `gang.Host`."""
        started: list[LocalRank] = []
        try:
            for number in ranks:
                started.append(await self._spawn(number))  # noqa: PERF401 - what was started must be known if one fails
        except BaseException:
            for rank in started:
                rank.kill()
            raise
        return started

    async def carry(self, command: Message) -> None:
        """Everything is here."""

    async def tidy(self) -> None:
        """Files here are the front's own."""

    async def _spawn(self, number: int) -> LocalRank:
        log = self._plan.folder / f"rank-{number}.log"
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
                env=self._environment(number),
            )
        return LocalRank(number, process, await open_front_channel(ours), log, self._place)

    def _environment(self, number: int) -> dict[str, str]:
        """Ours without our own settings, and what torch, gloo and DeepSpeed read from there."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
        interface = {"GLOO_SOCKET_IFNAME": self._plan.interface} if self._plan.interface else {}
        return (
            kept
            | interface
            | {
                "RANK": str(number),
                "LOCAL_RANK": str(number - self._first),
                "WORLD_SIZE": str(self._plan.ranks),
                "OMP_NUM_THREADS": str(self._plan.threads),
                # Threads that wait sleep: spinning costs other processes their cores, and on a busy machine the step itself
                # (measured with 2 threads at load 9: 42 s instead of 12 s).
                "OMP_WAIT_POLICY": "PASSIVE",
                "CUDA_VISIBLE_DEVICES": "",
                "DS_ACCELERATOR": "cpu",
                "HF_HUB_OFFLINE": "1",
                # The end of a rank's log is what an error carries.
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYTHONUNBUFFERED": "1",
            }
        )


class OneHost:
    """All ranks are on this machine (`supervisor.Hosts`)."""

    def __init__(self, host: LocalHost) -> None:
        self._host = host

    async def gathered(self) -> Sequence[LocalHost]:
        return [self._host]

    def missing(self) -> str:
        return ""


def _tail(log: Path) -> str:
    """The last lines of a rank's log: where a traceback ends."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip()
