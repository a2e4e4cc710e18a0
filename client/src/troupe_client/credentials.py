"""The tokens of a local deployment: only who can read its state folder can call its services.

Made afresh each time that services are started. `tokens` is what the services are given, and holds no secret;
`ROLE.token` holds the token of a role, readable by the owner alone.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from troupe_contracts.access import Role
from troupe_contracts.identity import Identity, read_identity
from troupe_contracts.tokens import line_for, new_token

ROLES: Final = (Role.OBSERVER, Role.CLIENT, Role.ENGINE, Role.ORCHESTRATOR)


def tokens_file(folder: Path) -> Path:
    """What a service checks its callers by."""
    return folder / "tokens"


def token_file(folder: Path, role: Role) -> Path:
    """The token of a role."""
    return folder / f"{role}.token"


def issue(folder: Path) -> None:
    """Makes a token for each role, in place of those that were there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    tokens: Mapping[Role, str] = {role: new_token() for role in ROLES}
    for role, token in tokens.items():
        _write(token_file(folder, role), token)
    _write(tokens_file(folder), "\n".join(line_for(role, token) for role, token in tokens.items()))


def identity(folder: Path, role: Role) -> Identity:
    """A role of this deployment, to call its services with.

    Raises:
        CredentialError: its token cannot be read.
    """
    return read_identity(token_file(folder, role))


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{text}\n")
