"""An API server, asked in plain dicts.

The official client brings kubeconfigs, tokens that are renewed, and TLS. Its typed calls are not used: their models
take seconds to import and change from release to release, so a request is a path, and an answer is JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException, list_kube_config_contexts, load_incluster_config, new_client_from_config

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 30.0
MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"

Object = dict[str, Any]
"""A Kubernetes object, or a list of them, as JSON."""


class ApiError(RuntimeError):
    """The API server refused."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status = status
        self.reason = reason


class ApiUnreachableError(RuntimeError):
    """The API server does not answer."""


class ClusterConfigError(RuntimeError):
    """There is nothing that says where the API server is, or it cannot be used."""


class Api:
    """One API server, with the credentials of one user. Calls block: not for an event loop.

    Args:
        namespace: of what is asked for, unless a path names another.
    """

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    @classmethod
    def in_cluster(cls) -> Self:
        """As the service account of the pod that this runs in.

        Raises:
            ClusterConfigError: this is no pod, or one without a token.
        """
        configuration = Configuration()
        try:
            load_incluster_config(client_configuration=configuration)
            namespace = _NAMESPACE_FILE.read_text().strip()
        except (ConfigException, OSError) as error:
            raise ClusterConfigError(f"{error}; give the pod a service account's token, projected") from error
        return cls(ApiClient(configuration), namespace)

    @classmethod
    def from_kubeconfig(cls, context: str | None = None, namespace: str | None = None, file: str | None = None) -> Self:
        """As a kubeconfig says.

        Args:
            context: the current one unless given.
            namespace: the context's own, or `default`, unless given.
            file: as $KUBECONFIG says unless given.

        Raises:
            ClusterConfigError: there is none, or it has no such context.
        """
        # The client read it when it was imported.
        file = file or os.environ.get("KUBECONFIG") or None
        try:
            contexts, current = list_kube_config_contexts(config_file=file)
            chosen = current if context is None else next((each for each in contexts if each["name"] == context), None)
            if chosen is None:
                names = ", ".join(each["name"] for each in contexts)
                raise ClusterConfigError(f"the kubeconfig has no context {context!r}, only {names}")
            client = new_client_from_config(config_file=file, context=chosen["name"])
        except (ConfigException, OSError, KeyError, TypeError, ValueError) as error:
            raise ClusterConfigError(f"the kubeconfig cannot be used: {error}; look at $KUBECONFIG") from error
        return cls(client, namespace or chosen["context"].get("namespace") or "default")

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self.client.configuration.host)

    def namespaced(self, group: str, resource: str, name: str = "", namespace: str = "") -> str:
        """Path of a resource in a namespace; `group` is `v1`, or `GROUP/VERSION`."""
        root = "/api/v1" if group == "v1" else f"/apis/{group}"
        return f"{root}/namespaces/{namespace or self.namespace}/{resource}{f'/{name}' if name else ''}"

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """What is there.

        Raises:
            ApiError: refused, or not found.
            ApiUnreachableError: no answer.
        """
        return self._json(self._call("GET", path, query or {}))

    def send(self, method: str, path: str, body: Object, content_type: str = _JSON) -> Object:
        """Create, replace or patch.

        Raises:
            ApiError: refused.
            ApiUnreachableError: no answer; whether it was done is not known.
        """
        return self._json(self._call(method, path, {}, json.dumps(body), content_type))

    def date(self) -> str:
        """The API server's `Date` header: its clock, to the second."""
        answer = self._call("GET", "/version", {})
        answer.drain_conn()
        return str(answer.headers.get("Date", ""))

    @contextlib.contextmanager
    def watch(self, path: str, query: Mapping[str, str], silent_seconds: float) -> Iterator[Watched]:
        """Changes as they come, until the API server ends the watch.

        Args:
            silent_seconds: after which a watch that says nothing is taken for dead.

        Raises:
            ApiError: refused.
            ApiUnreachableError: no answer.
        """
        answer = self._call("GET", path, {**query, "watch": "true"}, read_seconds=silent_seconds)
        try:
            yield Watched(answer)
        finally:
            answer.close()
            answer.release_conn()

    def headers(self) -> dict[str, str]:
        """What shows who we are; a token is read anew when it is due."""
        found = {"User-Agent": "troupe", "Accept": _JSON, **self.client.default_headers}
        for setting in self.client.configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                found[setting["key"]] = setting["value"]
        return found

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: str | None = None,
        content_type: str = _JSON,
        read_seconds: float = _ANSWER_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        url = f"{self.server}{path}{f'?{urlencode(query)}' if query else ''}"
        headers = self.headers() | ({} if body is None else {"Content-Type": content_type})
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds)
        pool: urllib3.PoolManager = self.client.rest_client.pool_manager
        try:
            answer = pool.request(
                method, url, body=body, headers=headers, timeout=timeout, retries=False, preload_content=False
            )
            if answer.status >= 400:
                raise _refused(answer.status, answer.read(decode_content=True))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiUnreachableError(f"{self.server} does not answer: {error}") from error
        return answer

    def _json(self, answer: urllib3.BaseHTTPResponse) -> Object:
        try:
            read: Object = json.loads(answer.read(decode_content=True))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiUnreachableError(f"{self.server} broke off its answer: {error}") from error
        finally:
            answer.release_conn()
        return read


class Watched:
    """A watch that is open."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self._answer = answer

    def events(self) -> Iterator[Object]:
        """`{"type": …, "object": …}`, until the server, the network or `stop` ends them. A torn line is no event."""
        rest = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError, ValueError):
            for chunk in self._answer.stream(2**16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line.strip())

    def stop(self) -> None:
        """End the events, from another thread."""
        connection = self._answer.connection
        if isinstance(found := getattr(connection, "sock", None), socket.socket):
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


def _refused(status: int, body: bytes) -> ApiError:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return ApiError(status, "", body.decode(errors="replace")[:500])
    return ApiError(status, said.get("reason", ""), said.get("message", ""))
