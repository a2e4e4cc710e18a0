"""The gang agent: what a learner is on every node but the first. It starts and ends the node's ranks on the front's order.

No torch. It dials the front again and again, and stays the same process through generations, fronts and networks that come
and go: healthy when it is connected and when it tries. When the stream to the front ends, for whatever reason, or the front
is silent, it ends its ranks before anything else. What they have done since the last commit is then nobody's: only the
front, from what rank 0 and the streams have brought it, publishes anything.
"""

import asyncio
from collections.abc import AsyncIterator
from socket import gethostname
from typing import Final

import grpc
from troupe.v1 import gang_pb2, gang_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.errors import describe
from troupe_contracts.health import Health
from troupe_contracts.identity import own
from troupe_contracts.log import get_logger
from troupe_contracts.server import serve

from troupe_learner.agent_ranks import AgentRanks
from troupe_learner.joined_stream import Outbox, Silence, heard
from troupe_learner.membership import in_common
from troupe_learner.model_folder import open_model
from troupe_learner.rank_plan import rank_plan, this_machine
from troupe_learner.settings import LearnerSettings
from troupe_learner.work_folder import WorkFolder

_RETRY_SECONDS: Final = 1.0
_log = get_logger()


async def run(settings: LearnerSettings) -> None:
    """Serves health until told to stop, and the front meanwhile.

    Raises:
        BadModel, FolderInUse: it cannot be had; the text says why.
    """
    model = await asyncio.to_thread(open_model, settings.model)
    folder = await asyncio.to_thread(WorkFolder.open, settings.work_dir)
    common = await asyncio.to_thread(in_common, settings, model)
    member = gang_pb2.GangMember(
        node_rank=settings.node_rank, pod=gethostname(), machine=settings.machine, common=common
    )
    host = this_machine(settings, rank_plan(settings, model, folder.ranks))
    agent = Agent(settings.gang_address, member, AgentRanks(host, folder.carried, model.folder, settings.gang_address))
    joining: list[asyncio.Task[None]] = []

    async def stop() -> None:
        for task in joining:
            task.cancel()
        await asyncio.gather(*joining, return_exceptions=True)

    # Not before `serve` has made the settings' credentials this process's own.
    def begin(server: grpc.aio.Server) -> None:
        joining.append(asyncio.create_task(agent.run()))

    try:
        await serve("learner", settings, begin, [], stop, health=Health())
    finally:
        await stop()


class Agent:
    """One node's part in the gang. For use on the event loop only."""

    def __init__(self, address: str, member: gang_pb2.GangMember, ranks: AgentRanks) -> None:
        self._address = address
        self._member = member
        self._ranks = ranks
        self._said = ""

    async def run(self) -> None:
        """Joins again and again, until it is cancelled."""
        while True:
            try:
                why = await self._joined()
            except Exception:
                # A defect of ours must not end what has to stay: its ranks are gone, and it joins afresh.
                _log.exception("the agent failed")
            else:
                self._say(why)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _joined(self) -> str:
        """From one attempt to join to its end; why it ended. No rank is left then."""
        outbox: Outbox[gang_pb2.JoinRequest] = Outbox()
        outbox.say(gang_pb2.JoinRequest(member=self._member))
        async with connect(self._address, own()) as channel:
            beating = asyncio.create_task(outbox.beat(gang_pb2.JoinRequest(heartbeat=gang_pb2.Heartbeat())))
            # A channel of its own for each attempt: the front's name may have got another address.
            stream = gang_pb2_grpc.GangStub(channel).Join(outbox.messages())
            try:
                await self._obey(aiter(stream), outbox)
            except grpc.aio.AioRpcError as error:
                return describe(error)
            except Silence as silence:
                return f"the front gave {silence}"
            finally:
                beating.cancel()
                stream.cancel()
                await self._ranks.end()
        return "the front ended the stream"

    async def _obey(
        self, responses: AsyncIterator[gang_pb2.JoinResponse], outbox: Outbox[gang_pb2.JoinRequest]
    ) -> None:
        joined = False
        async for response in heard(responses):
            if not joined:
                joined, self._said = True, ""
                _log.info("joined the gang", front=self._address)
            match response.WhichOneof("message"):
                case "start":
                    await self._ranks.start(response.start, outbox)
                case "kill":
                    self._ranks.kill(response.kill.generation)
                case "tell":
                    await self._ranks.tell(response.tell)
                case "piece":
                    await self._ranks.keep(response.piece, outbox)
                case "discard":
                    await self._ranks.discard()

    def _say(self, why: str) -> None:
        """Once for each reason: it is tried every second."""
        if why != self._said:
            _log.error("not in the gang", front=self._address, reason=why)
            self._said = why
