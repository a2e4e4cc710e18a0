"""A stand-in for what API server and kubelet do for a port-forward: one TCP connection over a WebSocket, on channel 0."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler
from typing import BinaryIO

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE, _PING = 2, 8, 9


def forward(handler: BaseHTTPRequestHandler, port: int, there: socket.socket) -> None:
    """Answer an upgrade, and carry bytes until one side ends."""
    key = handler.headers["Sec-WebSocket-Key"]
    accept = base64.b64encode(hashlib.sha1(f"{key}{_MAGIC}".encode()).digest()).decode()
    handler.send_response(101)
    handler.send_header("Upgrade", "websocket")
    handler.send_header("Connection", "Upgrade")
    handler.send_header("Sec-WebSocket-Accept", accept)
    handler.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
    handler.end_headers()
    # Each channel begins with the port that it is of.
    for channel in (0, 1):
        _send(handler.connection, bytes([channel]) + struct.pack("<H", port))
    handler.close_connection = True

    def answer() -> None:
        with contextlib.suppress(OSError):
            while chunk := there.recv(2**16):
                _send(handler.connection, b"\0" + chunk)
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=answer, daemon=True).start()
    with contextlib.suppress(OSError, EOFError):
        while (payload := _read(handler.rfile)) is not None:
            there.sendall(payload[1:])
    there.close()


def _send(connection: socket.socket, payload: bytes) -> None:
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 2**16:
        length = b"\x7e" + struct.pack(">H", size)
    else:
        length = b"\x7f" + struct.pack(">Q", size)
    connection.sendall(bytes([0x80 | _BINARY]) + length + payload)


def _read(stream: BinaryIO) -> bytes | None:
    """Payload of the next binary frame; None at the end."""
    while True:
        head = _exactly(stream, 2)
        size = head[1] & 0x7F
        if size == 126:
            size = struct.unpack(">H", _exactly(stream, 2))[0]
        elif size == 127:
            size = struct.unpack(">Q", _exactly(stream, 8))[0]
        mask = _exactly(stream, 4)
        body = _exactly(stream, size)
        if head[0] & 0x0F == _CLOSE:
            return None
        if head[0] & 0x0F != _PING:
            return bytes(byte ^ mask[number % 4] for number, byte in enumerate(body))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found
