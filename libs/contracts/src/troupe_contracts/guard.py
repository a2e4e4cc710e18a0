"""Decides who may call a server: by tokens, by client certificates, or everyone.

A guard with tokens takes those alone; one with certificates takes the role from the certificate that the TLS handshake
has verified, from its URI name `troupe-role:ROLE`. Which role may call what is `access`'s. Pure: no gRPC here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from troupe_contracts.access import Role, callers
from troupe_contracts.errors import PermissionDenied, Unauthenticated
from troupe_contracts.tokens import KnownToken, role_of

ROLE_NAME: Final = "troupe-role:"
_SCHEME: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Guard:
    """What a server asks its callers for. With neither, everyone may call everything."""

    tokens: Callable[[], tuple[KnownToken, ...]] = tuple
    """Those that are taken now."""
    certificates: bool = False

    def admit(self, method: str, authorization: str | None, uri_names: Iterable[str]) -> None:
        """Returns if the call may go on.

        Args:
            authorization: of the call's metadata, None without.
            uri_names: of the caller's verified certificate.

        Raises:
            Unauthenticated: it shows no credential, or one that is not taken.
            PermissionDenied: its role may not call this.
        """
        method = method.removeprefix("/")
        allowed = callers(method)
        tokens = self.tokens()
        if Role.ANONYMOUS in allowed or not (tokens or self.certificates):
            return
        role = _role_of_token(tokens, method, authorization) if tokens else _role_of_certificate(method, uri_names)
        if role not in allowed:
            wanted = " or ".join(sorted(allowed)) or "no role: it has no row in access.json"
            raise PermissionDenied(
                f"{method} is for {wanted}; this credential's role is {role}: call with a credential of the other role"
            )


OPEN: Final = Guard()


def _role_of_certificate(method: str, uri_names: Iterable[str]) -> Role:
    named = [name.removeprefix(ROLE_NAME) for name in uri_names if name.startswith(ROLE_NAME)]
    roles = [each.value for each in Role if each is not Role.ANONYMOUS]
    if len(named) != 1 or named[0] not in roles:
        raise Unauthenticated(
            f"{method}: the client certificate names {len(named)} roles; it must have one URI name {ROLE_NAME}ROLE "
            f"with a role of {', '.join(roles)}"
        )
    return Role(named[0])


def _role_of_token(tokens: Iterable[KnownToken], method: str, authorization: str | None) -> Role:
    if authorization is None:
        raise Unauthenticated(
            f"{method} needs a token and the call shows none: name a file that holds one with TROUPE_TOKEN_FILE, "
            "or send the metadata `authorization: Bearer TOKEN`"
        )
    if not authorization.lower().startswith(_SCHEME):
        raise Unauthenticated(f"{method} needs the metadata `authorization: Bearer TOKEN`; it has another scheme")
    role = role_of(tokens, authorization[len(_SCHEME) :].strip())
    if role is None:
        raise Unauthenticated(
            f"{method}: the token is none of this service's; it may have been replaced: "
            "read it again, or have its SHA-256 put into the service's TROUPE_TOKENS"
        )
    return role
