"""What a service is told at start: environment variables with the prefix TROUPE_.

An unknown one stops the start-up, naming itself: an option that nobody reads is an error, not a no-op.

A service listens on loopback. On another address it wants to know who calls (TROUPE_TOKENS, or TROUPE_TLS_CERT with
TROUPE_TLS_CA), or to be told that it need not (TROUPE_INSECURE).
"""

import difflib
import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from troupe_contracts.log import LogFormat, LogLevel
from troupe_contracts.redaction import redact_text

PREFIX: Final = "TROUPE_"


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


# A comma-separated list of words, such as targets: "127.0.0.1:4001,127.0.0.1:4002".
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ServiceSettings(BaseModel):
    """Settings of every service; a service subclasses it with its own fields.

    `load` reads the environment: field `ready_file` is TROUPE_READY_FILE. Constructed directly (in tests), a
    settings object holds what it is given and nothing of the environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    listen: str = Field(default="127.0.0.1:0", description="host:port to serve gRPC on; port 0 takes a free one")
    metrics: str = Field(default="127.0.0.1:0", description="host:port to serve /metrics on; port 0 takes a free one")
    ready_file: Path | None = Field(default=None, description="file to write, as JSON, once the service serves")
    die_with_parent: bool = Field(default=False, description="true: end when the process that started this one ends")
    drain_seconds: float = Field(
        default=10.0, ge=0, description="seconds that calls in flight get on SIGTERM, 0 or more"
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")
    log_format: LogFormat = Field(default="json", description="json or console")
    tokens: Path | None = Field(
        default=None, description="file with a line `ROLE sha256:HEX` for each token that callers may show"
    )
    token_file: Path | None = Field(default=None, description="file with the token for the calls of this service")
    tls_cert: Path | None = Field(default=None, description="PEM file with this service's certificate chain")
    tls_key: Path | None = Field(default=None, description="PEM file with the certificate's private key")
    tls_ca: Path | None = Field(
        default=None,
        description="PEM file of the authority of all other certificates; without tokens callers must have one of it",
    )
    tls_server_name: str | None = Field(
        default=None, description="name in the certificates of the services called, in place of the target's host"
    )
    insecure: bool = Field(
        default=False, description="true: serve everyone who can reach an address that is not loopback"
    )

    @field_validator("listen", "metrics")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _knows_its_callers(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TROUPE_TLS_CERT and TROUPE_TLS_KEY come together: set both or neither")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("TROUPE_TLS_CA is set without TROUPE_TLS_CERT and TROUPE_TLS_KEY: a service needs its own")
        if self.tls_server_name is not None and self.tls_ca is None:
            raise ValueError("TROUPE_TLS_SERVER_NAME is set without TROUPE_TLS_CA: no certificate would be looked at")
        closed = self.tokens is not None or self.asks_for_certificates
        exposed = self._exposed()
        if exposed and not closed and not self.insecure:
            raise ValueError(
                f"{' and '.join(exposed)} can be reached from other machines, and anyone could call: set TROUPE_TOKENS, "
                "or TROUPE_TLS_CERT, TROUPE_TLS_KEY and TROUPE_TLS_CA (docs/security.md), listen on 127.0.0.1, or set "
                "TROUPE_INSECURE=true where the network keeps others out"
            )
        if self.insecure and (closed or not exposed):
            reason = "callers are asked for credentials" if closed else "only loopback is listened on"
            raise ValueError(f"TROUPE_INSECURE=true changes nothing: {reason}; unset it")
        return self

    @property
    def asks_for_certificates(self) -> bool:
        """True when callers must have a certificate: with an authority and without tokens."""
        return self.tls_ca is not None and self.tokens is None

    def warnings(self) -> list[str]:
        """What to say at each start, since others may reach the service."""
        exposed = " and ".join(self._exposed())
        if self.insecure:
            return [f"{exposed}: TROUPE_INSECURE lets everyone who can reach it call everything"]
        if exposed and self.tls_cert is None:
            return [f"{exposed}: tokens and messages travel in plain text; set TROUPE_TLS_CERT and TROUPE_TLS_KEY"]
        return []

    def _exposed(self) -> list[str]:
        addresses = {"TROUPE_LISTEN": self.listen, "TROUPE_METRICS": self.metrics}
        return [f"{name}={address}" for name, address in addresses.items() if not is_loopback(address)]

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings from the environment; on a bad one prints what is wrong and exits with status 2."""
        try:
            return cls.read(os.environ if environ is None else environ)
        except SettingsError as problem:
            print(redact_text(str(problem)), file=sys.stderr)
            raise SystemExit(2) from None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """The settings from `environ`.

        Raises:
            SettingsError: variables that are unknown or have an invalid value, all of them.
        """
        fields = {f"{PREFIX}{name.upper()}": name for name in cls.model_fields}
        given = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        problems = [_unknown(name, fields) for name in sorted(given) if name not in fields]
        values = {fields[name]: value for name, value in given.items() if name in fields}
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(problems + cls._invalid(error, given)) from error
        if problems:
            raise SettingsError(problems)
        return settings

    @classmethod
    def _invalid(cls, error: ValidationError, given: Mapping[str, str]) -> list[str]:
        lines = []
        for each in error.errors():
            field = str(each["loc"][0]) if each["loc"] else ""
            name = f"{PREFIX}{field.upper()}"
            value = f"{given[name]!r}" if name in given else "not set"
            wanted = cls.model_fields[field].description if field in cls.model_fields else None
            remedy = f"; wanted: {wanted}" if wanted else ""
            said = each["msg"].removeprefix("Value error, ")
            lines.append(f"{name} is {value}: {said}{remedy}" if field else said)
        return lines


class SettingsError(ValueError):
    """Every variable that is unknown or has an invalid value, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port".

    Raises:
        ValueError: it is neither.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port with a port from 0 to 65535")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach "host:port". A name other than localhost counts as reachable."""
    host, _ = split_address(address)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unknown(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not known to this service: {hint}unset it. Known: {', '.join(sorted(known))}"
