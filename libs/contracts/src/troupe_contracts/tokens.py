"""Bearer tokens: secrets that a caller shows, of which a service knows the SHA-256 alone.

A service reads a file with one line for each token that it takes, `ROLE sha256:HEX`; empty lines and lines that begin
with # are left out. A role may have several lines, so that a new token is taken before the old one goes. Whoever
calls has a file that holds its token and nothing else. A hash without salt is enough because tokens are random: one
shorter than `MIN_CHARACTERS` is refused where it is read.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from troupe_contracts.access import Role

MIN_CHARACTERS: Final = 32
MAX_FILE_BYTES: Final = 2**20
"""Of a file of tokens, or a PEM file."""
# Tells our tokens from other text wherever one turns up; `redaction` looks for it.
PREFIX: Final = "troupe-token-"
_DIGEST_PREFIX: Final = "sha256:"


class CredentialError(ValueError):
    """A file with credentials that cannot be used; the text names it and says how it should be."""


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A token that a service takes, as it knows it."""

    role: Role
    digest: bytes


def new_token() -> str:
    """A token with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def line_for(role: Role, token: str) -> str:
    """The line that makes a service take a token."""
    return f"{role} {_DIGEST_PREFIX}{_digest(token).hex()}"


def role_of(known: Iterable[KnownToken], token: str) -> Role | None:
    """The role of a token, None if it is not known. Takes the same time wherever it differs."""
    digest = _digest(token)
    found = None
    for each in known:
        if hmac.compare_digest(each.digest, digest):
            found = each.role
    return found


def parse_known(text: str, source: str = "the file") -> tuple[KnownToken, ...]:
    """The tokens of a service's file.

    Raises:
        CredentialError: a line is not `ROLE sha256:HEX`, or there is none.
    """
    known = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            known.append(_parse_line(line, f"{source}, line {number}"))
    if not known:
        raise CredentialError(f"{source} names no token: nobody could call; write a line `ROLE sha256:HEX` for each")
    return tuple(known)


def read_known(path: Path) -> tuple[KnownToken, ...]:
    """`parse_known` of a file."""
    return parse_known(_read(path), str(path))


def read_token(path: Path) -> str:
    """The token that a caller's file holds.

    Raises:
        CredentialError: it cannot be read, or is no token.
    """
    token = _read(path).strip()
    if len(token) < MIN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialError(
            f"{path} must hold one token and nothing else: at least {MIN_CHARACTERS} printable ASCII characters "
            "without a space"
        )
    return token


def _parse_line(line: str, where: str) -> KnownToken:
    # Never quotes the line: it may hold a token that was put there instead of its digest.
    role, _, written = line.strip().partition(" ")
    roles = [each.value for each in Role if each is not Role.ANONYMOUS]
    if role not in roles:
        raise CredentialError(f"{where}: does not begin with a role: {', '.join(roles)}")
    digits = written.strip().removeprefix(_DIGEST_PREFIX)
    if not written.strip().startswith(_DIGEST_PREFIX) or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise CredentialError(f"{where}: needs sha256: and 64 lower-case hexadecimal digits after the role")
    return KnownToken(Role(role), bytes.fromhex(digits))


def read_bytes(path: Path) -> bytes:
    """A file of credentials. Never reads more than such a file has, whatever it is.

    Raises:
        CredentialError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # a path with a null byte
        raise CredentialError(f"{str(path)!r}: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise CredentialError(f"{path} is no file of credentials: the limit is {MAX_FILE_BYTES} bytes")
    return content


def _read(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CredentialError(f"{path} is not UTF-8 text") from error


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
