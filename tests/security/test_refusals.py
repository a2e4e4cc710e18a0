"""When and how a call is refused: before anything of it is read, and in the same words in both languages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from guarded.calls import outcome, rpcs_at
from guarded.servers import Address, idle
from troupe_contracts.access import Role, callers
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity


@asynccontextmanager
async def two_servers(known: Path, sandbox_address: Address) -> AsyncIterator[list[tuple[str, Address]]]:
    """One server of each language."""
    async with idle("learner", {"tokens": known}) as learner:
        yield [("learner", learner), ("sandbox", sandbox_address)]


async def test_a_refused_call_is_refused_before_anything_of_it_is_read(
    with_tokens: tuple[Path, dict[str, Identity]], sandbox_with_tokens: Address
) -> None:
    known, holders = with_tokens
    async with two_servers(known, sandbox_with_tokens) as servers:
        for process, address in servers:
            async with connect(address.target, holders["client"]) as channel:
                for rpc in rpcs_at(process):
                    if Role.CLIENT not in callers(rpc.name) and Role.ANONYMOUS not in callers(rpc.name):
                        # A stream on which the caller says nothing is answered all the same; else bytes that are no message.
                        unread = None if rpc.request_streaming else b"\xff"
                        assert await outcome(channel, rpc, unread) is grpc.StatusCode.PERMISSION_DENIED, rpc.name


async def test_both_languages_refuse_in_the_same_words(
    with_tokens: tuple[Path, dict[str, Identity]], sandbox_with_tokens: Address
) -> None:
    known, holders = with_tokens
    async with idle("sandbox", {"tokens": known}) as python:
        for holder in ("nobody", "stranger", "client", "observer"):
            said = []
            for address in (python, sandbox_with_tokens):
                async with connect(address.target, holders[holder]) as channel:
                    call = channel.unary_stream("/troupe.v1.Sandbox/RunTests", request_serializer=bytes)(b"")
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call.read()
                    said.append((caught.value.code(), caught.value.details()))
            assert said[0] == said[1]


async def test_a_wrong_scheme_is_no_credential(with_tokens: tuple[Path, dict[str, Identity]]) -> None:
    token = with_tokens[1]["orchestrator"].token
    async with idle("learner", {"tokens": with_tokens[0]}) as address:
        async with connect(address.target) as channel:
            for shown in (f"Basic {token}", f"{token}", f"Bearer{token}", f"Bearer {token}x", f"Bearer x{token}", ""):
                get = channel.unary_unary("/troupe.v1.Learner/GetLearner", request_serializer=bytes)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await get(b"", metadata=(("authorization", shown),))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert address.reached == []
