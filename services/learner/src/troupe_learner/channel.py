"""The channel between the front and a rank: JSON messages over a Unix socket pair, each with a u32 length before it.

Small words only; tensors and batches pass as files in the work folder, named in a message. The front's side is
asynchronous, the rank's side blocks, so that an idle rank uses no CPU. A closed channel ends the other side.
"""

import asyncio
import json
import socket
import struct
from typing import Any, Final

Message = dict[str, Any]

_LENGTH: Final = struct.Struct("<I")
_MAX_BYTES: Final = 16 * 2**20


class ChannelClosed(ConnectionError):
    """The other side is gone."""


def encode(message: Message) -> bytes:
    text = json.dumps(message).encode()
    if len(text) > _MAX_BYTES:
        raise ValueError(f"a message of {len(text)} bytes is over the limit of {_MAX_BYTES}: pass a file")
    return _LENGTH.pack(len(text)) + text


class RankChannel:
    """The rank's end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: Message) -> None:
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise ChannelClosed("the front is gone") from error

    def receive(self) -> Message:
        """Blocks until a message comes."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        message: Message = json.loads(self._exactly(length))
        return message

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ChannelClosed("the front is gone")
            parts += part
        return bytes(parts)


class FrontChannel:
    """The front's end of one rank."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Message) -> None:
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except OSError as error:
            raise ChannelClosed("the rank is gone") from error

    async def receive(self) -> Message:
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: Message = json.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ChannelClosed("the rank is gone") from error
        return message

    def close(self) -> None:
        self._writer.close()


async def open_front_channel(end: socket.socket) -> FrontChannel:
    end.setblocking(False)
    return FrontChannel(*await asyncio.open_unix_connection(sock=end))
