"""A call whose message is never sent whole, which no gRPC library does: the few frames of HTTP/2 that it takes."""

from __future__ import annotations

import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_HEADERS, _ACKNOWLEDGED = 4, 1
_STREAM = 1
_LARGER_CONNECTION = bytes([0, 0, 4, 8, 0, 0, 0, 0, 0])
"""The beginning of WINDOW_UPDATE of stream 0."""
_LARGEST_FRAME = 1 << 14
_PATIENCE_SECONDS = 60.0
_LAST_HEADERS = bytes([1, 5, 0, 0, 0, 1])
"""Of a frame with headers that ends the stream: all but its length."""


class HalfSent:
    """A peer that says that a message of `length` bytes comes, and sends less."""

    def __init__(self, target: str, method: str, length: int, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", target),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        )
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, b"", stream=0))
        # A stream's window is as large as the server says once this side has said that it knows; the connection's once the
        # server has said it.
        received = b""
        while _LARGER_CONNECTION not in received:
            received += self._socket.recv(_LARGEST_FRAME)
        self._socket.sendall(_frame(_SETTINGS, b"", _ACKNOWLEDGED, stream=0))
        self._socket.sendall(_frame(_HEADERS, b"".join(_field(*each) for each in headers), _END_HEADERS))
        self.begin(length)

    def begin(self, length: int) -> None:
        """That a message of that length comes."""
        self._socket.sendall(_frame(_DATA, b"\0" + struct.pack(">I", length)))

    def send(self, count: int) -> None:
        """So many bytes more, of no meaning."""
        while count > 0:
            now = min(count, _LARGEST_FRAME)
            self._socket.sendall(_frame(_DATA, bytes(now)))
            count -= now

    def wait_for_its_end(self) -> None:
        """The server ends the call."""
        self._socket.settimeout(_PATIENCE_SECONDS)
        received = b""
        while _LAST_HEADERS not in received:
            more = self._socket.recv(_LARGEST_FRAME)
            assert more, received
            received += more

    def close(self) -> None:
        self._socket.close()


def _frame(kind: int, payload: bytes, flags: int = 0, stream: int = _STREAM) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: str, value: str) -> bytes:
    """A header field as HPACK's literal without indexing."""
    return b"\0" + b"".join(bytes([len(each)]) + each.encode() for each in (name, value))
