"""Who may call what: the roles, and the one table of them, `access.json`.

The table has a row for each RPC of each service, and for the paths of the HTTP port under the name `http`: the roles
that may call it, each the least that the call needs. What has no row nobody may call. The sandbox, which is not
Python, compiles the same file in.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from typing import Any, Final


class Role(StrEnum):
    """What a credential is for. No role holds another: each has the rows that name it."""

    ANONYMOUS = "anonymous"
    """No credential. A row with it is open to everyone."""
    OBSERVER = "observer"
    """Looks: runs, jobs, executions, what each service says of itself, metrics. Changes nothing."""
    CLIENT = "client"
    """Has work done: runs, eval jobs, questions. Reaches the orchestrator and nothing behind it."""
    ENGINE = "engine"
    """A designer or executor: has a shared engine generate, pulls weights."""
    LEARNER = "learner"
    """A gang agent: joins the gang of a learner's front, and takes part in its training."""
    ORCHESTRATOR = "orchestrator"
    """Drives designers, engines, sandboxes and learners; the only role that replaces weights."""


def read_table(text: str) -> dict[str, frozenset[Role]]:
    """Who may call each method, such as "troupe.v1.Policy/Generate", of a table as JSON.

    Raises:
        ValueError: a service or a method is there twice, or a role does not exist.
    """
    return {
        f"{service}/{method}": frozenset(map(Role, roles))
        for service, methods in json.loads(text, object_pairs_hook=_each_once).items()
        for method, roles in methods.items()
    }


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in pairs:
        if name in rows:
            raise ValueError(f"access.json has {name!r} twice: remove one")
        rows[name] = value
    return rows


ACCESS: Final[Mapping[str, frozenset[Role]]] = read_table(files(__package__).joinpath("access.json").read_text())
_NOBODY: Final[frozenset[Role]] = frozenset()


def callers(method: str) -> frozenset[Role]:
    """The roles that may call a method; "/troupe.v1.Policy/Generate" or without the first slash."""
    return ACCESS.get(method.removeprefix("/"), _NOBODY)
