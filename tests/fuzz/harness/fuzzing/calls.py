"""Calls of any method with requests as bytes, many at once, and what is wrong with how one ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from troupe_contracts.wire import CHANNEL_OPTIONS

from fuzzing.messages import payload

# What says that the server, not the caller, did something wrong.
FAULTS = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}
)
# A call that takes longer hangs. Generous: the machine may be busy.
SECONDS = 60.0
# A watch, which rightly waits for what is to come, is left after that. Every other call is read to its end.
IDLE_SECONDS = 0.5
MESSAGES_READ = 20
AT_ONCE = 16


@dataclass(frozen=True)
class Ending:
    """How one call ended. The seed and the number make the same requests again."""

    method: str
    seed: str
    number: int
    code: grpc.StatusCode
    details: str

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed} number {self.number}: {self.code.name}: {self.details[:300]}"


@dataclass(frozen=True)
class Method:
    """A method, good requests for it, and the one that has to come first."""

    descriptor: MethodDescriptor
    good: Sequence[Message]
    opening: Message | None = None

    @property
    def name(self) -> str:
        return f"{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def is_watch(self) -> bool:
        """Whether it goes on for as long as somebody listens."""
        return self.descriptor.server_streaming and self.descriptor.name.startswith("Watch")

    def requests(self, seed: str, number: int) -> list[bytes]:
        """The requests of one call. Every other stream that has a first message of its own begins with it unharmed."""
        chance = random.Random(f"{seed}/{self.name}/{number}")
        count = chance.choice((0, 1, 1, 2, 4)) if self.descriptor.client_streaming else 1
        requests = [payload(chance, self.descriptor.input_type, self.good) for _ in range(count)]
        if self.opening is not None and number % 2:
            requests.insert(0, self.opening.SerializeToString())
        return requests


async def fuzz(target: str, method: Method, seed: str, numbers: Sequence[int]) -> list[Ending]:
    """Makes these calls; how each ended."""
    if method.descriptor.client_streaming:
        with (
            grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as streaming,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):
            made = [method.requests(seed, number) for number in numbers]
            return list(threads.map(partial(_stream, streaming, method, seed), numbers, made))
    slots = asyncio.Semaphore(AT_ONCE)
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:

        async def one(number: int) -> Ending:
            async with slots:
                return await _call(channel, method, seed, number, *method.requests(seed, number))

        return list(await asyncio.gather(*map(one, numbers)))


async def unharmed(target: str, method: Method, which: int) -> Ending:
    """How a call with one of the good requests ends; a stream is its opening and the first of them."""
    if method.opening is not None:
        requests = [each.SerializeToString() for each in (method.opening, method.good[0])]
        with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as streaming:
            return await asyncio.to_thread(_stream, streaming, method, "", which, requests)
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        return await _call(channel, method, "", which, method.good[which].SerializeToString())


async def _call(channel: grpc.aio.Channel, method: Method, seed: str, number: int, request: bytes) -> Ending:
    try:
        if method.descriptor.server_streaming:
            call = channel.unary_stream(f"/{method.name}")(request, timeout=SECONDS)
            if method.is_watch:
                await _watch(call)
            else:
                async for _ in call:
                    pass
        else:
            await channel.unary_unary(f"/{method.name}")(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return Ending(method.name, seed, number, error.code(), error.details() or "")
    return Ending(method.name, seed, number, grpc.StatusCode.OK, "")


def _stream(channel: grpc.Channel, method: Method, seed: str, number: int, sent: Sequence[bytes]) -> Ending:
    """A call with a stream of requests. The asynchronous client forgets how it ended where it ended before they did."""
    answered = Event()

    def requests() -> Iterator[bytes]:
        for each in sent:
            yield each
            if method.opening is not None and method.descriptor.server_streaming:
                # What follows is heard by whatever the opening has set up.
                answered.wait(IDLE_SECONDS)

    try:
        if method.descriptor.server_streaming:
            for _ in channel.stream_stream(f"/{method.name}")(requests(), timeout=SECONDS):
                answered.set()
        else:
            channel.stream_unary(f"/{method.name}")(requests(), timeout=SECONDS)
    except grpc.RpcError as error:
        return Ending(method.name, seed, number, error.code(), error.details() or "")
    return Ending(method.name, seed, number, grpc.StatusCode.OK, "")


async def _watch(call: Any) -> None:
    """The first responses; a watch that waits for what is to come, or has more, is left."""
    try:
        for _ in range(MESSAGES_READ):
            async with asyncio.timeout(IDLE_SECONDS):
                if await call.read() is grpc.aio.EOF:
                    await _end(call)
                    return
    except TimeoutError:
        pass
    call.cancel()


async def _end(call: Any) -> None:
    """
    Raises:
        AioRpcError: it did not end well.
    """
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
