"""The HTTP port of a service: `GET /metrics` for Prometheus, `GET /healthz` for probes that speak no gRPC.

Guarded as the RPCs are: /metrics by the table's row, with the same tokens or certificates; /healthz is open and says
200 while the service serves, else 503.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from troupe_contracts.errors import PermissionDenied, Unauthenticated
from troupe_contracts.guard import Guard

_REQUEST_SECONDS: Final = 5.0
_PLAIN: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpEndpoint:
    """The port, while it is open."""

    port: int
    close: Callable[[], None]


def open_http(
    host: str, port: int, guard: Guard, is_serving: Callable[[], bool], tls: ssl.SSLContext | None = None
) -> HttpEndpoint:
    """Opens the port; 0 takes a free one.

    Raises:
        OSError: the address is taken or not ours.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def setup(self) -> None:
            super().setup()
            if isinstance(self.connection, ssl.SSLSocket):
                # Here, on the connection's own thread: a client that dawdles keeps nobody else waiting.
                self.connection.do_handshake()

        def do_GET(self) -> None:
            if self.path not in ("/metrics", "/healthz"):
                self._answer(404, _PLAIN, b"only GET /metrics and GET /healthz\n")
                return
            try:
                guard.admit(f"http{self.path}", self.headers.get("Authorization"), _uri_names(self.connection))
            except (Unauthenticated, PermissionDenied) as error:
                status = 401 if isinstance(error, Unauthenticated) else 403
                self._answer(status, _PLAIN, f"{error.message}\n".encode())
                return
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
            elif is_serving():
                self._answer(200, _PLAIN, b"ok\n")
            else:
                self._answer(503, _PLAIN, b"not serving\n")

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: a scrape every few seconds is no event."""

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that broke off, or no TLS: its own affair."""

    server = Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return HttpEndpoint(server.server_port, close)


def _uri_names(connection: socket.socket) -> Iterable[str]:
    """The URI names of the client's certificate, which the handshake has verified."""
    certificate = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
    names: Any = (certificate or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI"]
