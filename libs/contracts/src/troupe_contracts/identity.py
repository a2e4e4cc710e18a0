"""What this process shows to the services that it calls: a token, a certificate, and whose certificates it trusts.

A credential goes only where the code that connects says so: `connect(target, own())`. A target that a caller of ours
chose gets none; otherwise whoever may name a target could have our credential sent to it.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from troupe_contracts.followed import Followed
from troupe_contracts.redaction import keep_secret
from troupe_contracts.tokens import CredentialError, read_bytes, read_token


class Certificates(NamedTuple):
    """PEM of what a channel's handshake trusts and shows."""

    authority: bytes | None
    """The one that servers' certificates must have; the system's where there is none."""
    certificate: bytes | None
    """Our own and those between it and its authority."""
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller's credentials. With `certificates` its channels are TLS."""

    token: str | None = field(default=None, repr=False)
    server_name: str | None = None
    """Name that servers' certificates must have, in place of the target's host."""
    followed: Followed[str] | None = field(default=None, repr=False, compare=False)
    """The token as its file has it now, where it came from one."""
    certificates: Followed[Certificates] | None = field(default=None, repr=False, compare=False)
    """As their files have them now."""

    @property
    def tls(self) -> bool:
        """True when its channels are encrypted."""
        return self.certificates is not None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        token = self.token if self.followed is None else self.followed.value
        return () if token is None else (("authorization", f"Bearer {token}"),)


NOBODY: Final = Identity()
_own = NOBODY


def read_identity(
    token_file: Path | None = None,
    authority: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    server_name: str | None = None,
) -> Identity:
    """The identity that files hold, which it follows.

    Raises:
        CredentialError: one cannot be read, or holds something else; a certificate without its key.
    """
    if (certificate is None) != (key is None):
        raise CredentialError("a certificate and its key come together: name both or neither")
    if server_name is not None and authority is None and certificate is None:
        raise CredentialError(
            "a server's name is looked for in its certificate: name its authority too (TROUPE_TLS_CA)"
        )
    followed = None if token_file is None else _followed_token(token_file)
    files = [file for file in (authority, certificate, key) if file is not None]
    return Identity(
        token=None if followed is None else followed.value,
        server_name=server_name,
        followed=followed,
        certificates=Followed(files, lambda: _read_certificates(authority, certificate, key)) if files else None,
    )


def _read_certificates(authority: Path | None, certificate: Path | None, key: Path | None) -> Certificates:
    found = Certificates(
        None if authority is None else read_pem(authority, "CERTIFICATE"),
        None if certificate is None else read_pem(certificate, "CERTIFICATE"),
        None if key is None else read_pem(key, "PRIVATE KEY"),
    )
    if certificate is not None and key is not None:
        try:
            # Refuses a key of another certificate, which gRPC would find out in the handshake alone.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
        except OSError as error:
            raise CredentialError(f"{certificate} with {key}: {error}") from error
    return found


def _followed_token(file: Path) -> Followed[str]:
    def read() -> str:
        token = read_token(file)
        keep_secret(token)
        return token

    return Followed([file], read)


def read_pem(path: Path, kind: str) -> bytes:
    """A PEM file that holds something of a kind.

    Raises:
        CredentialError: it cannot be read, or holds none.
    """
    content = read_bytes(path)
    if f"{kind}-----".encode() not in content:
        raise CredentialError(f"{path} holds no {kind} in PEM")
    return content


def assume(identity: Identity) -> None:
    """Makes `identity` this process's own. Called once, by the program, before it connects to anything."""
    global _own
    _own = identity


def own() -> Identity:
    """This process's own identity: nobody, until the program has said otherwise."""
    return _own
