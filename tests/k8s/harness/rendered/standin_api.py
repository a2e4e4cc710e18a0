"""A stand-in for the API server: Secrets and ConfigMaps of one namespace, over TLS, for whoever shows the token."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from guarded.authority import Pair


@dataclass
class StandinApi:
    """What it holds, by `secrets/NAME` or `configmaps/NAME`, and what was asked."""

    token: str
    port: int = 0
    held: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)
    """Methods that are answered 403."""


@contextmanager
def serve(api: StandinApi, pair: Pair) -> Iterator[StandinApi]:
    """Serves while the block runs; `api.port` is set."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            status, answer = self._answer(body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, body: dict[str, Any]) -> tuple[int, Any]:
            key = self.path.removeprefix("/api/v1/namespaces/troupe/")
            api.asked.append((self.command, key))
            if self.headers.get("Authorization") != f"Bearer {api.token}":
                return 401, {}
            if self.command in api.forbidden:
                return 403, {"message": f"{self.command} is forbidden"}
            if self.command == "POST":
                key = f"{key}/{body['metadata']['name']}"
                if key in api.held:
                    return 409, {}
                written = body.pop("stringData", {})
                encoded = {name: base64.b64encode(value.encode()).decode() for name, value in written.items()}
                api.held[key] = {**body, "data": {**body.get("data", {}), **encoded}}
                return 201, api.held[key]
            if key not in api.held:
                return 404, {}
            if self.command == "PATCH":
                api.held[key]["data"] |= body["data"]
            return 200, api.held[key]

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def do_PATCH(self) -> None:
            self._handle()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    api.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
