"""A stand-in API server: lists, watches, `scale`, `status`, events, over HTTP, with the ways in which real ones fail.

It keeps objects and a history of changes, and speaks as much of the API as the product uses. What it cannot show is what a
real one decides by itself: validation, defaults, rights. Tests with the marker `cluster` are for that.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from standin_api.forwarding import forward

Object = dict[str, Any]
WITH_STATUS = ("/trainingruns", "/evaljobs")
"""Collections whose objects have a status that is written by itself."""

_CAN_BE_GENERATED = re.compile(r"[a-z0-9]([-a-z0-9.]*[-a-z0-9])?")
"""Part of a name: a dot at its end is refused."""


class StandInApi:
    """One server, on a port of loopback. Paths of objects are as the API has them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[str, dict[str, Object]] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.forgotten = 0
        """Changes up to this version cannot be watched any more."""
        self.version = 1
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.watched: list[str] = []
        """Paths of the watches that are open."""
        self.away = False
        self.silent = False
        """Watches stay open and say nothing, as after a network that drops packets."""
        self.generation = 0
        """Of the watches: those of an older one are cut."""
        self.allowed: set[tuple[str, str]] | None = None
        """(verb, resource) that access reviews allow; None allows all."""
        self.pods: dict[str, str] = {}
        """Name to host:port of what a port-forward to any port of the pod leads to."""
        self.status_patches: list[tuple[str, Object]] = []
        """Name of the object and what was sent, of each write of a status."""
        self._forwards: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self, folder: Path, namespace: str = "troupe") -> Path:
        """A kubeconfig with one context, `standin`."""
        file = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "standin",
            "clusters": [{"name": "standin", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": "a-token"}}],
            "contexts": [
                {"name": "standin", "context": {"cluster": "standin", "user": "user", "namespace": namespace}}
            ],
        }
        file.write_text(json.dumps(config))
        return file

    def put(self, collection: str, found: Object) -> Object:
        """Create an object, or replace it."""
        with self.changed:
            kept = copy.deepcopy(found)
            name = kept["metadata"].setdefault(
                "name", f"{kept['metadata'].get('generateName', '')}{uuid.uuid4().hex[:5]}"
            )
            before = self.objects.setdefault(collection, {}).get(name)
            kept["metadata"].setdefault("uid", before["metadata"]["uid"] if before else str(uuid.uuid4()))
            if collection.endswith(WITH_STATUS):
                self._as_a_resource_with_status(kept, before)
            self._record("ADDED" if before is None else "MODIFIED", collection, kept)
            self.objects[collection][name] = kept
            return kept

    def delete(self, collection: str, name: str) -> None:
        with self.changed:
            self._record("DELETED", collection, self.objects[collection].pop(name))

    def cut_watches(self) -> None:
        """Break every open watch off."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def asked(self, method: str, path: str, watch: bool = False) -> int:
        """How often something was asked for."""
        with self.changed:
            return sum(
                1 for one, where, query in self.requests if (one, where, "watch" in query) == (method, path, watch)
            )

    @contextmanager
    def forwarding(self, connection: socket.socket) -> Iterator[None]:
        with self.changed:
            self._forwards.append(connection)
        try:
            yield
        finally:
            with self.changed:
                self._forwards.remove(connection)

    def cut_forwards(self) -> None:
        """Break every port-forward off, as when its pod ends."""
        with self.changed:
            for connection in self._forwards:
                connection.shutdown(socket.SHUT_RDWR)

    def wait_until_watched(self, path: str) -> None:
        """Until a watch is open."""
        with self.changed:
            opened = self.changed.wait_for(lambda: path in self.watched, 20)
            assert opened, f"nobody watches {path}"

    def close(self) -> None:
        self.cut_watches()
        self.cut_forwards()
        self._server.shutdown()
        self._server.server_close()

    def patch_status(self, collection: str, name: str, patch: Object) -> Object | None:
        """A merge patch of the status, as of the version that it names; None where the object is of another one.

        Raises:
            KeyError: there is no such object.
        """
        with self.changed:
            before = self.objects.get(collection, {})[name]
            if (
                patch.get("metadata", {}).get("resourceVersion", before["metadata"]["resourceVersion"])
                != (before["metadata"]["resourceVersion"])
            ):
                return None
            kept = copy.deepcopy(before)
            kept["status"] = _merged(before.get("status", {}), patch["status"])
            if kept["status"] != before.get("status"):
                self._record("MODIFIED", collection, kept)
                self.objects[collection][name] = kept
            self.status_patches.append((name, patch["status"]))
            return kept

    @staticmethod
    def _as_a_resource_with_status(kept: Object, before: Object | None) -> None:
        """As the API server does for a resource that has a status of its own: a write of the object leaves that alone."""
        metadata = kept["metadata"]
        metadata.setdefault("namespace", "troupe")
        kept.pop("status", None)
        if before is None:
            metadata |= {"generation": 1, "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            return
        metadata["creationTimestamp"] = before["metadata"]["creationTimestamp"]
        metadata["generation"] = before["metadata"]["generation"] + (kept.get("spec") != before.get("spec"))
        if "status" in before:
            kept["status"] = copy.deepcopy(before["status"])

    def _record(self, kind: str, collection: str, found: Object) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, collection, copy.deepcopy(found)))
        self.changed.notify_all()


@contextmanager
def standin_api() -> Iterator[StandInApi]:
    """A server for the length of a block."""
    api = StandInApi()
    try:
        yield api
    finally:
        api.close()


def _handler(api: StandInApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            path, query = self._asked()
            if path is None:
                return
            if path == "/version":
                self._answer(200, {"gitVersion": "v1.34.4"})
                return
            if path.endswith("/portforward"):
                pod = path.split("/")[-2]
                with api.changed:
                    target = api.pods.get(pod)
                if target is None:
                    self._fail(404, "NotFound", f"pod {pod} not found")
                    return
                host, _, port = target.rpartition(":")
                with socket.create_connection((host, int(port))) as there, api.forwarding(self.connection):
                    forward(self, int(query["ports"]), there)
                return
            if query.get("watch") == "true":
                self._watch(path, query)
                return
            with api.changed:
                collection, _, name = path.rpartition("/")
                if _names_one(path):
                    found = api.objects.get(collection, {}).get(name)
                    if found is None:
                        self._fail(404, "NotFound", f"{name} not found")
                    else:
                        self._answer(200, found)
                    return
                listed = [each for each in api.objects.get(path, {}).values() if _selected(each, query)]
                self._answer(200, {"metadata": {"resourceVersion": str(api.version)}, "items": listed})

        def do_POST(self) -> None:
            path, _ = self._asked()
            if path is None:
                return
            body = self._body()
            if path.endswith("/selfsubjectaccessreviews"):
                wanted = body["spec"]["resourceAttributes"]
                resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
                allowed = api.allowed is None or (wanted["verb"], resource) in api.allowed
                self._answer(201, {**body, "status": {"allowed": allowed}})
                return
            if not _CAN_BE_GENERATED.fullmatch(body["metadata"].get("generateName", "a-")):
                self._fail(
                    422, "Invalid", f"metadata.generateName: Invalid value: {body['metadata']['generateName']!r}"
                )
                return
            self._answer(201, api.put(path, body))

        def do_PATCH(self) -> None:
            path, _ = self._asked()
            if path is None:
                return
            if path.endswith("/status"):
                self._patch_status(path.removesuffix("/status"))
                return
            workload = path.removesuffix("/scale")
            collection, _, name = workload.rpartition("/")
            found = api.objects.get(collection, {}).get(name)
            if found is None:
                self._fail(404, "NotFound", f"{name} not found")
                return
            replicas = self._body()["spec"]["replicas"]
            self._answer(200, api.put(collection, {**found, "spec": {**found["spec"], "replicas": replicas}}))

        def _patch_status(self, path: str) -> None:
            collection, _, name = path.rpartition("/")
            try:
                kept = api.patch_status(collection, name, self._body())
            except KeyError:
                self._fail(404, "NotFound", f"{name} not found")
                return
            if kept is None:
                self._fail(409, "Conflict", f"{name} has been modified")
            else:
                self._answer(200, kept)

        def _watch(self, path: str, query: dict[str, str]) -> None:
            version, generation = int(query["resourceVersion"]), api.generation
            ends = time.monotonic() + float(query.get("timeoutSeconds", "60"))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with api.changed:
                gone = version < api.forgotten
                api.watched.append(path)
                api.changed.notify_all()
            try:
                if gone:
                    status = {"code": 410, "reason": "Expired", "message": "too old resource version"}
                    self._chunk({"type": "ERROR", "object": status})
                while time.monotonic() < ends and api.generation == generation:
                    with api.changed:
                        api.changed.wait(0.05)
                        # What is said after it is for nobody: a proxy may leave the connection open.
                        new = [] if api.silent or gone else [each for each in api.history if each[0] > version]
                    version = max([version, *(each[0] for each in new)])
                    for _, kind, collection, found in new:
                        if collection == path and _selected(found, query):
                            self._chunk({"type": kind, "object": found})
                if api.generation == generation:
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.close_connection = True
            except OSError:
                self.close_connection = True
            finally:
                with api.changed:
                    api.watched.remove(path)

        def _asked(self) -> tuple[str | None, dict[str, str]]:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            with api.changed:
                api.requests.append((self.command, parts.path, query))
            refused = api.away or self.headers.get("Authorization") != "Bearer a-token"
            if refused:
                # What is left unread would be taken for the next request.
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if api.away:
                self._fail(503, "ServiceUnavailable", "the stand-in is away")
                return None, query
            if refused:
                self._fail(401, "Unauthorized", "no token")
                return None, query
            return parts.path, query

        def _body(self) -> Object:
            body: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return body

        def _chunk(self, event: Object) -> None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

        def _fail(self, status: int, reason: str, message: str) -> None:
            self._answer(status, {"kind": "Status", "code": status, "reason": reason, "message": message})

        def _answer(self, status: int, body: Object) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    return Handler


def _merged(before: Object, patch: Object) -> Object:
    """RFC 7386."""
    merged = {key: value for key, value in before.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            known = before.get(key)
            merged[key] = _merged(known if isinstance(known, dict) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _names_one(path: str) -> bool:
    """Whether a path is of one object: /api/v1/namespaces/NAME, …/namespaces/NAME/RESOURCE/NAME."""
    _, _, rest = path.partition("/namespaces/")
    return rest.count("/") in (0, 2) if rest else False


def _selected(found: Object, query: dict[str, str]) -> bool:
    labels = found["metadata"].get("labels") or {}
    wanted = [each.split("=", 1) for each in query.get("labelSelector", "").split(",") if each]
    return all(labels.get(key) == value for key, value in wanted)
