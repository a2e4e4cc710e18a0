"""The agents of the other nodes, as the front meets them: on a port of its own, which only members of the gang call.

One agent to a node. One that differs in what all must have in common (`membership`), or whose node is taken by an agent that
lives, is refused by name and may come again; meanwhile the gang waits, however long: pods come when they come, and
waiting is no failure of a generation.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
from troupe.v1 import gang_pb2, gang_pb2_grpc
from troupe_contracts.calls import CallInterceptor, CallLimits
from troupe_contracts.errors import FailedPrecondition, InvalidArgument
from troupe_contracts.log import get_logger
from troupe_contracts.server import ListenError
from troupe_contracts.server_credentials import read_server_credentials
from troupe_contracts.settings import is_loopback, split_address
from troupe_contracts.wire import SERVER_OPTIONS

from troupe_learner.agent_link import AgentLink
from troupe_learner.gang import Host
from troupe_learner.joined_stream import Silence, heard
from troupe_learner.membership import differences
from troupe_learner.settings import LearnerSettings

SERVICE_NAME: Final = "troupe.v1.Gang"
_CLOSE_SECONDS: Final = 1.0
_log = get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


class Agents(gang_pb2_grpc.GangServicer):
    """All of them (`supervisor.Hosts`). For use on the event loop only."""

    def __init__(self, settings: LearnerSettings, here: Host, common: Mapping[str, str]) -> None:
        self._settings = settings
        self._here = here
        self._common = common
        self._links: dict[int, AgentLink] = {}
        self._refused: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def open(self) -> None:
        """Listens for agents.

        Raises:
            ListenError: the port cannot be had.
            CredentialError: a file with credentials cannot be used.
        """
        credentials = await asyncio.to_thread(read_server_credentials, self._settings)
        server = grpc.aio.server(
            interceptors=[CallInterceptor(CallLimits(), credentials.guard)], options=list(SERVER_OPTIONS)
        )
        gang_pb2_grpc.add_GangServicer_to_server(self, server)
        wanted = self._settings.gang_address
        # The host is a name by which others find this machine: it may be nobody's yet.
        address = wanted if is_loopback(wanted) else f"[::]:{split_address(wanted)[1]}"
        try:
            if credentials.tls is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, await asyncio.to_thread(credentials.tls.for_grpc))
        except RuntimeError as error:
            raise ListenError(f"TROUPE_GANG_ADDRESS={wanted}: cannot listen on {address}; take another port") from error
        await server.start()
        self._server = server

    async def close(self) -> None:
        """Ends all streams, whereupon the agents end their ranks. Safe to call again."""
        if self._server is not None:
            await self._server.stop(_CLOSE_SECONDS)

    async def gathered(self) -> Sequence[Host]:
        """This machine and all others, in the order of their nodes, once all are there."""
        while absent := self._absent():
            _log.info("the gang waits", nodes=absent)
            self._changed.clear()
            await self._changed.wait()
        return [self._here, *(self._links[node] for node in sorted(self._links))]

    def missing(self) -> str:
        """Which nodes have no agent here, and why, if that is known."""
        return "; ".join(
            f"waiting for node {node} of {self._settings.nodes}: {self._refused.get(node, 'its agent has not come')}"
            for node in self._absent()
        )

    async def Join(
        self, request_iterator: AsyncIterator[gang_pb2.JoinRequest], context: Context
    ) -> AsyncIterator[gang_pb2.JoinResponse]:
        async with aclosing(heard(request_iterator)) as requests:
            link = self._admitted(await _member(requests))
            _log.info("an agent joined", agent=link.name)
            attending = asyncio.create_task(self._attend(link, requests))
            try:
                async for message in link.outbox.messages():
                    yield message
                if attending.done():
                    await attending
            finally:
                # First of all, and without waiting: a call whose client is gone may be cancelled here too.
                self._leave(link, "the stream ended")
                attending.cancel()
                await asyncio.wait([attending])

    async def _attend(self, link: AgentLink, requests: AsyncIterator[gang_pb2.JoinRequest]) -> None:
        """Hears an agent to its end. A task of its own: the call itself may stand still where nobody takes its messages."""
        beating = asyncio.create_task(link.outbox.beat(gang_pb2.JoinResponse(heartbeat=gang_pb2.Heartbeat())))
        why = "the stream ended"
        try:
            await link.listen(requests)
        except Silence as silence:
            why = str(silence)
        finally:
            beating.cancel()
            self._leave(link, why)

    def _admitted(self, member: gang_pb2.GangMember) -> AgentLink:
        node, settings = member.node_rank, self._settings
        if not 1 <= node < settings.nodes:
            raise InvalidArgument(
                "member.node_rank", f"is {node}: the gang has nodes 0 to {settings.nodes - 1}, 0 is here"
            )
        holder = self._links.get(node)
        if holder is not None:
            raise FailedPrecondition(
                f"node {node}",
                f"has an agent already, {holder.name}, which lives: if {member.pod} replaces it, end that one first; "
                "otherwise give each its own TROUPE_NODE_RANK",
            )
        if odd := differences(self._common, dict(member.common)):
            refused = f"{member.pod} was refused: {'; '.join(odd)}"
            # It comes again every second.
            if self._refused.get(node) != refused:
                _log.error("an agent was refused", agent=member.pod, node=node, reason=odd)
            self._refused[node] = refused
            raise FailedPrecondition(
                f"agent {member.pod}",
                f"cannot join: {'; '.join(odd)}; give all nodes the same settings, model and image",
            )
        self._refused.pop(node, None)
        link = self._links[node] = AgentLink(member, not _is_partitioned(settings), settings.stall_seconds)
        self._changed.set()
        return link

    def _leave(self, link: AgentLink, why: str) -> None:
        if self._links.get(link.node) is link:
            del self._links[link.node]
            _log.error("an agent is gone", agent=link.name, reason=why)
            link.gone(why)

    def _absent(self) -> list[int]:
        return [node for node in range(1, self._settings.nodes) if node not in self._links]


async def _member(requests: AsyncIterator[gang_pb2.JoinRequest]) -> gang_pb2.GangMember:
    async for request in requests:
        if request.WhichOneof("message") == "member":
            return request.member
        break
    raise InvalidArgument("member", "must be the first message")


def _is_partitioned(settings: LearnerSettings) -> bool:
    """Whether each rank holds its share of the weights only."""
    return settings.engine == "deepspeed" and settings.zero_stage == 3
