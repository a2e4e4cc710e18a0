"""The front's end of one agent: a host whose ranks are reached through its stream (`joined_stream`).

The stream is all there is: when it ends, or the agent is silent, every rank of that host counts as gone, and the agent
ends them by itself. What is said of another generation than the current one is not heard.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from troupe.v1 import gang_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_learner.carrying import Arriving, pieces, read_by, written_by
from troupe_learner.channel import ChannelClosed, Message
from troupe_learner.gang import Cause, CommandRefused, Ending
from troupe_learner.joined_stream import Outbox

Response = gang_pb2.JoinResponse


@dataclass
class RemoteRank:
    """A rank of an agent."""

    number: int
    place: str
    link: "AgentLink"
    generation: int
    said: asyncio.Queue[Message | None] = field(default_factory=asyncio.Queue)
    """What it said and nobody has heard yet; None at its end."""
    end: asyncio.Future[Ending] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    words: str = ""

    async def send(self, message: Message) -> None:
        if self.end.done():
            raise ChannelClosed("the rank is gone")
        self.link.expect(message, self.number)
        word = gang_pb2.RankWord(generation=self.generation, rank=self.number, word=json.dumps(message).encode())
        self.link.outbox.say(Response(tell=word))

    async def receive(self) -> Message:
        message = await self.said.get()
        if message is None:
            self.said.put_nowait(None)
            raise ChannelClosed("the rank is gone")
        return message

    def kill(self) -> None:
        if not self.end.done():
            self.link.outbox.say(Response(kill=gang_pb2.KillRanks(generation=self.generation)))

    async def ended(self) -> Ending:
        return await asyncio.shield(self.end)

    async def last_words(self) -> str:
        return self.words

    def close(self) -> None:
        """Its end closed it."""

    def is_gone(self, ending: Ending, words: str) -> None:
        """What the link has heard of its end."""
        if not self.end.done():
            self.words = words
            self.end.set_result(ending)
            self.said.put_nowait(None)


class AgentLink:
    """One agent that joined. For use on the event loop only; of no use after `gone`.

    Args:
        replicated: whether ranks hold weights whole (`carrying.read_by`).
        stall_seconds: how long one piece of a file may take.
    """

    def __init__(self, member: gang_pb2.GangMember, replicated: bool, stall_seconds: float) -> None:
        self.node = member.node_rank
        self.name = f"{member.pod} (node {member.node_rank}{f' on {member.machine}' if member.machine else ''})"
        self.outbox: Outbox[Response] = Outbox()
        self._place = f", pod {member.pod}" + (f", machine {member.machine}" if member.machine else "")
        self._replicated = replicated
        self._stall_seconds = stall_seconds
        self._generation = 0
        self._ranks: dict[int, RemoteRank] = {}
        self._arriving: dict[str, tuple[int, Arriving]] = {}
        """Files that ranks write in the command under way, by name, with the rank."""
        self._receipts: asyncio.Queue[gang_pb2.FileReceipt | None] = asyncio.Queue()
        self._why_gone = ""

    # --- a host of the gang -----------------------------------------------------------------------------------------

    async def start(self, generation: int, ranks: range) -> Sequence[RemoteRank]:
        """See `gang.Host`. What cannot be started there ends at once."""
        self._generation, self._receipts = generation, asyncio.Queue()
        self._ranks = {number: RemoteRank(number, self._place, self, generation) for number in ranks}
        said = gang_pb2.StartRanks(generation=generation, first_rank=ranks.start, count=len(ranks))
        self.outbox.say(Response(start=said))
        if self._why_gone:
            self.gone(self._why_gone)
        return list(self._ranks.values())

    async def carry(self, command: Message) -> None:
        """Sends what its ranks read, and waits until it is whole there."""
        loop = asyncio.get_running_loop()
        try:
            # A piece that is not taken for so long ends the generation, as ranks that stand still do.
            async with asyncio.timeout(self._stall_seconds) as limit:
                for name, path in read_by(command, self._numbers(), self._replicated).items():
                    async with aclosing(pieces(name, path, "the front", self._generation)) as parts:
                        async for piece in parts:
                            await self.outbox.ship(Response(piece=piece))
                            limit.reschedule(loop.time() + self._stall_seconds)
                    await self._received()
        except TimeoutError:
            # Nobody knows what it has: it joins again, with nothing.
            self.outbox.close()
            raise

    async def tidy(self) -> None:
        """Has the agent forget what came and was written."""
        arriving, self._arriving = self._arriving, {}
        for _, each in arriving.values():
            await each.close()
        self.outbox.say(Response(discard=gang_pb2.DiscardFiles()))

    def expect(self, command: Message, rank: int) -> None:
        """Files of a rank that come before its answer."""
        for name in written_by(command, rank):
            self._arriving[name] = rank, Arriving(Path(command["folder"]) / name, "the front")

    async def _received(self) -> None:
        receipt = await self._receipts.get()
        if receipt is None:
            self._receipts.put_nowait(None)
            raise ChannelClosed("the agent is gone")
        if receipt.HasField("problem"):
            raise CommandRefused(receipt.problem.code, receipt.problem.message)

    # --- what the agent says ----------------------------------------------------------------------------------------

    async def listen(self, requests: AsyncIterator[gang_pb2.JoinRequest]) -> None:
        """Hears the agent to the end of its stream.

        Raises:
            InvalidArgument: it says what no rank says.
        """
        async for request in requests:
            match request.WhichOneof("message"):
                case "said":
                    self._hear(request.said)
                case "ended":
                    self._end(request.ended)
                case "piece":
                    await self._keep(request.piece)
                case "receipt":
                    if request.receipt.generation == self._generation:
                        self._receipts.put_nowait(request.receipt)

    def gone(self, why: str) -> None:
        """The stream is over, and with it the ranks."""
        self._why_gone = why
        for rank in self._ranks.values():
            rank.is_gone(Ending(Cause.LOST_HOST, f"lost with its agent: {why}"), "")
        self._receipts.put_nowait(None)
        self.outbox.close()

    def _hear(self, said: gang_pb2.RankWord) -> None:
        rank = self._current(said.generation, said.rank)
        if rank is None:
            return
        message = _message(said.word)
        problems = [
            each.problem for of, each in self._arriving.values() if of == said.rank and each.problem is not None
        ]
        if problems and message["kind"] == "done":
            message = {"kind": "refused", "code": problems[0].code, "message": problems[0].message}
        rank.said.put_nowait(message)

    def _end(self, ended: gang_pb2.RankEnd) -> None:
        rank = self._current(ended.generation, ended.rank)
        if rank is not None:
            cause = Cause.SIGNAL if ended.by_signal else Cause.STATUS
            rank.is_gone(Ending(cause, ended.how), ended.last_words)

    async def _keep(self, piece: gang_pb2.FilePiece) -> None:
        """Writes a part of what a rank wrote, where the front wants it. What nobody wants any more is dropped."""
        if piece.generation == self._generation and piece.name in self._arriving:
            number, arriving = self._arriving[piece.name]
            await arriving.take(piece)
            self._ranks[number].said.put_nowait({"kind": "progress", "value": 0.0})

    def _current(self, generation: int, rank: int) -> RemoteRank | None:
        return self._ranks.get(rank) if generation == self._generation else None

    def _numbers(self) -> range:
        return range(min(self._ranks), max(self._ranks) + 1)


def _message(word: bytes) -> Message:
    try:
        message = json.loads(word)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or "kind" not in message:
        raise InvalidArgument("said.word", "must be a JSON object with a kind, as ranks send it")
    return message
