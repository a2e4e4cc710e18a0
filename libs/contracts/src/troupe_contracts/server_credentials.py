"""What a server shows and asks for: its own certificate, and its callers' tokens or certificates.

Tokens and client certificates exclude each other: with tokens, the certificate authority is for the calls that this
process makes itself.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from troupe_contracts.guard import Guard
from troupe_contracts.identity import read_pem
from troupe_contracts.settings import ServiceSettings
from troupe_contracts.tokens import CredentialError, read_known


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a server's own, and of the authority that its callers' certificates must have."""

    certificate: Path
    key: Path
    client_authority: Path | None

    def for_grpc(self) -> grpc.ServerCredentials:
        pair = read_pem(self.key, "PRIVATE KEY"), read_pem(self.certificate, "CERTIFICATE")
        if self.client_authority is None:
            return grpc.ssl_server_credentials([pair])
        return grpc.ssl_server_credentials([pair], read_pem(self.client_authority, "CERTIFICATE"), True)

    def for_http(self) -> ssl.SSLContext:
        """For the HTTP port, where a probe has no certificate: one that is shown is verified."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authority is not None:
                context.verify_mode = ssl.CERT_OPTIONAL
                context.load_verify_locations(self.client_authority)
        except ssl.SSLError as error:
            raise CredentialError(f"{self.certificate} with {self.key}: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """All of it; `tls` None serves plain text."""

    guard: Guard = field(default_factory=Guard)
    tls: Tls | None = None


def read_server_credentials(settings: ServiceSettings) -> ServerCredentials:
    """What the settings name.

    Raises:
        CredentialError: a file cannot be read, or holds something else.
    """
    tokens = () if settings.tokens is None else read_known(settings.tokens)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_ca if settings.asks_for_certificates else None)
    return ServerCredentials(Guard(tokens, settings.asks_for_certificates), tls)
