"""Stands between a client and its API server and can fall silent: connections stay open and nothing comes any more."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class SilentRelay:
    """Forwards TCP to a server. What is connected when it falls silent stays so; new connections are forwarded."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._silent = threading.Event()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def fall_silent(self) -> None:
        """Forward nothing more of what is connected now."""
        self._silent.set()
        self._silent = threading.Event()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._server)
                self._sockets += (near, far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, sink, self._silent), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket, silent: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            if silent.is_set():
                return
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
