"""Stands between a store and its PostgreSQL server and cuts connections at a COMMIT, before or after it took effect."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_SOCKET = ".s.PGSQL.5432"


class CuttingProxy:
    """Forwards a server's Unix socket.

    `lose_answer` and `lose_request` are asked at each COMMIT, with how many there were before: true drops the server's
    answer to it, or the request itself, and the connection with it.
    """

    def __init__(self, server_folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="troupe-cut-"))
        self.lose_answer: Callable[[int], bool] = lambda _: False
        self.lose_request: Callable[[int], bool] = lambda _: False
        self.cuts = 0
        self._clients: set[asyncio.StreamWriter] = set()
        self._answers = 0
        self._requests = 0
        self._server_folder = server_folder
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._forward, str(self.folder / _SOCKET))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        (self.folder / _SOCKET).unlink(missing_ok=True)
        self.folder.rmdir()

    def url(self, url: str) -> str:
        """The URL of the same database by way of this proxy."""
        return url.replace(str(self._server_folder), str(self.folder))

    def cut(self) -> None:
        """Cut all clients off now; a server does what it was asked for to the end."""
        for client in self._clients:
            client.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(str(self._server_folder / _SOCKET))
        self._clients.add(writer)
        there = asyncio.ensure_future(self._copy(reader, server_writer, self._request_is_lost))
        back = asyncio.ensure_future(self._copy(server_reader, writer, self._answer_is_lost))
        # An end of either side ends both, without the polite goodbye that would tell the other side why.
        await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back):
            task.cancel()
        for side in (server_writer, writer):
            side.transport.abort()
        self._clients.discard(writer)

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_lost: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            async for chunk in _chunks(source):
                if is_lost(chunk):
                    self.cuts += 1
                    return
                sink.write(chunk)
                await sink.drain()

    def _request_is_lost(self, chunk: bytes) -> bool:
        if b"COMMIT\x00" not in chunk:
            return False
        self._requests += 1
        return self.lose_request(self._requests - 1)

    def _answer_is_lost(self, chunk: bytes) -> bool:
        if b"COMMIT\x00" not in chunk:
            return False
        self._answers += 1
        return self.lose_answer(self._answers - 1)


async def _chunks(source: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await source.read(1 << 16):
        yield chunk
