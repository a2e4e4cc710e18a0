"""What a server shows and asks for: its own certificate, and its callers' tokens or certificates.

Tokens and client certificates exclude each other: with tokens, the certificate authority is for the calls that this
process makes itself.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from troupe_contracts.followed import Followed
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
        """What each handshake takes from the files, as they are then."""
        followed = Followed(self._files, self._configuration)
        used = followed.value

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if followed.value is used:
                return None
            used = followed.value
            return used

        asks = self.client_authority is not None
        # None is for what has not changed, which the stubs do not know.
        return grpc.dynamic_ssl_server_credentials(used, changed, asks)  # type: ignore[arg-type]

    def for_http(self) -> ssl.SSLContext:
        """For the HTTP port, where a probe has no certificate: one that is shown is verified. Follows the files too."""
        followed = Followed(self._files, self._context)
        first = followed.value

        def follow(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = followed.value

        first.sni_callback = follow
        return first

    @property
    def _files(self) -> list[Path]:
        files = [self.certificate, self.key]
        return files if self.client_authority is None else [*files, self.client_authority]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        # Refuses a key of another certificate, which gRPC would find out in the handshake alone.
        self._context()
        pair = read_pem(self.key, "PRIVATE KEY"), read_pem(self.certificate, "CERTIFICATE")
        authority = None if self.client_authority is None else read_pem(self.client_authority, "CERTIFICATE")
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authority is not None:
                context.verify_mode = ssl.CERT_OPTIONAL
                context.load_verify_locations(self.client_authority)
        except OSError as error:
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
    guard = Guard(certificates=settings.asks_for_certificates)
    if (file := settings.tokens) is not None:
        tokens = Followed([file], lambda: read_known(file))
        guard = Guard(lambda: tokens.value)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_ca if settings.asks_for_certificates else None)
    return ServerCredentials(guard, tls)
