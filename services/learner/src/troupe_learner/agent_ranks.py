"""The ranks of an agent's node: children of this process, whose words and files pass through the stream to the front."""

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from troupe.v1 import gang_pb2
from troupe_contracts.log import get_logger
from troupe_contracts.settings import split_address

from troupe_learner.carrying import Arriving, at, inside, pieces, written_by
from troupe_learner.channel import ChannelClosed, Message
from troupe_learner.checkpoint_layout import STATE
from troupe_learner.gang import Cause
from troupe_learner.joined_stream import Outbox
from troupe_learner.local_ranks import LocalHost, LocalRank

Request = gang_pb2.JoinRequest
_WHERE: Final = "the agent"
_log = get_logger()


class AgentRanks:
    """Of one generation at a time. For use on the event loop only.

    Args:
        folder: for files of the command under way; emptied after it.
        model: where the model lies on this machine.
        gang_address: by which this machine knows the front's.
    """

    def __init__(self, host: LocalHost, folder: Path, model: Path, gang_address: str) -> None:
        self._host = host
        self._folder = folder
        self._model = model
        self._front = split_address(gang_address)[0]
        self._generation = 0
        self._ranks: dict[int, LocalRank] = {}
        self._commands: dict[int, Message] = {}
        self._speaking: list[asyncio.Task[None]] = []
        self._arriving: dict[str, Arriving] = {}

    async def start(self, start: gang_pb2.StartRanks, outbox: Outbox[Request]) -> None:
        """Starts the ranks of a generation. Any that cannot be ends at once."""
        await self.end()
        self._generation = start.generation
        numbers = range(start.first_rank, start.first_rank + start.count)
        _log.info("ranks start", generation=start.generation, ranks=list(numbers))
        try:
            ranks = await self._host.start(start.generation, numbers)
        except OSError as error:
            for number in numbers:
                ended = gang_pb2.RankEnd(generation=start.generation, rank=number, how=f"could not be started: {error}")
                outbox.say(Request(ended=ended))
            return
        self._ranks = {rank.number: rank for rank in ranks}
        self._speaking = [asyncio.create_task(self._speak_for(start.generation, rank, outbox)) for rank in ranks]

    def kill(self, generation: int) -> None:
        """Ends the ranks of a generation; they say so themselves."""
        if generation == self._generation:
            for rank in self._ranks.values():
                rank.kill()

    async def end(self) -> None:
        """Ends whatever runs, waits until it is gone, and forgets its files."""
        for rank in self._ranks.values():
            rank.kill()
        await asyncio.gather(*(rank.ended() for rank in self._ranks.values()))
        for speaking in self._speaking:
            speaking.cancel()
        await asyncio.gather(*self._speaking, return_exceptions=True)
        self._ranks, self._commands, self._speaking = {}, {}, []
        await self.discard()

    async def tell(self, word: gang_pb2.RankWord) -> None:
        """Passes a message on to a rank."""
        rank = self._ranks.get(word.rank) if word.generation == self._generation else None
        if rank is None:
            return
        command = self._here(json.loads(word.word))
        self._commands[word.rank] = command
        if "folder" in command:
            await asyncio.to_thread(_make, Path(command["folder"]) / STATE)
        # Of a rank that is gone the front hears from elsewhere.
        with suppress(ChannelClosed):
            await rank.send(command)

    async def keep(self, piece: gang_pb2.FilePiece, outbox: Outbox[Request]) -> None:
        """Writes a part of a file that ranks will read; says so when it is whole. One for ranks that are gone is dropped."""
        if piece.generation != self._generation:
            return
        if piece.name not in self._arriving:
            self._arriving[piece.name] = Arriving(inside(self._folder, piece.name), _WHERE)
        arriving = self._arriving[piece.name]
        if await arriving.take(piece):
            del self._arriving[piece.name]
            receipt = gang_pb2.FileReceipt(generation=piece.generation, name=piece.name, problem=arriving.problem)
            outbox.say(Request(receipt=receipt))

    async def discard(self) -> None:
        """Forgets all files."""
        arriving, self._arriving = self._arriving, {}
        for each in arriving.values():
            await each.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _speak_for(self, generation: int, rank: LocalRank, outbox: Outbox[Request]) -> None:
        """Passes on what a rank says, each answer after the files that it wrote, and then how it ended."""
        with suppress(ChannelClosed):
            while True:
                message = await rank.receive()
                if message["kind"] == "done":
                    await self._ship(generation, rank.number, outbox)
                word = gang_pb2.RankWord(generation=generation, rank=rank.number, word=json.dumps(message).encode())
                outbox.say(Request(said=word))
        ending = await rank.ended()
        rank.close()
        words = await rank.last_words()
        _log.error("a rank ended", rank=rank.number, generation=generation, how=ending.how)
        ended = gang_pb2.RankEnd(
            generation=generation,
            rank=rank.number,
            how=ending.how,
            by_signal=ending.cause is Cause.SIGNAL,
            last_words=words,
        )
        outbox.say(Request(ended=ended))

    async def _ship(self, generation: int, number: int, outbox: Outbox[Request]) -> None:
        for name in written_by(self._commands[number], number):
            async for piece in pieces(name, self._folder / name, _WHERE, generation):
                await outbox.ship(Request(piece=piece))

    def _here(self, message: Message) -> Message:
        """A message whose paths and addresses are this machine's."""
        if message["command"] != "start":
            return at(self._folder, message)
        port = urlsplit(message["rendezvous"]).port
        host = f"[{self._front}]" if ":" in self._front else self._front
        return message | {"model": str(self._model), "rendezvous": f"tcp://{host}:{port}"}


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
