"""Makes the tokens of all roles and the database's password, as Secrets; and `callers`, what services know of the tokens.

What is there stays as it is: to have a token anew, delete its Secret and this Job and apply again. Services follow their
files and need no restart. Nothing is printed but names.
"""

import base64
import json
import os
import secrets
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from troupe_contracts.access import Role
from troupe_contracts.tokens import line_for, new_token

ACCESS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ROLES = (Role.OBSERVER, Role.CLIENT, Role.ENGINE, Role.LEARNER, Role.ORCHESTRATOR)
NAMESPACE = (ACCESS / "namespace").read_text()
CONTEXT = ssl.create_default_context(cafile=str(ACCESS / "ca.crt"))
HOST = os.environ["KUBERNETES_SERVICE_HOST"]
SERVER = f"https://{f'[{HOST}]' if ':' in HOST else HOST}:{os.environ['KUBERNETES_SERVICE_PORT']}"
LABELS = {"app.kubernetes.io/part-of": "troupe", "app.kubernetes.io/managed-by": "credentials"}


def call(method: str, path: str, body: object = None) -> dict[str, Any] | None:
    """The API server's answer; None where there is no such thing, or where one that is made is there already."""
    request = urllib.request.Request(
        f"{SERVER}/api/v1/namespaces/{NAMESPACE}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCESS / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, context=CONTEXT, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        if error.code in (404, 409):
            return None
        raise SystemExit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error


def secret(name: str, key: str, value: str) -> str:
    """What stands under `key`: `value`, unless something stood there before."""
    if call("POST", "secrets", {"metadata": {"name": name, "labels": LABELS}, "stringData": {key: value}}) is not None:
        print(f"made {name}", flush=True)
    found = call("GET", f"secrets/{name}")
    if found is None:
        raise SystemExit(f"secret {name} was deleted meanwhile: it will be made at the next attempt")
    return base64.b64decode(found["data"][key]).decode()


secret("postgres-password", "password", secrets.token_hex(32))
lines = [line_for(role, secret(f"{role}-token", "token", new_token())) for role in ROLES]
callers = {
    "metadata": {"name": "callers", "labels": LABELS},
    "data": {"tokens": "".join(f"{line}\n" for line in lines)},
}
if call("POST", "configmaps", callers) is None:
    call("PATCH", "configmaps/callers", {"data": callers["data"]})
