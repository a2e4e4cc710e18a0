"""What a service is told at start: environment variables with the prefix TROUPE_.

An unknown one stops the start-up, naming itself: an option that nobody reads is an error, not a no-op.
"""

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from troupe_contracts.log import LogFormat, LogLevel

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

    @field_validator("listen", "metrics")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings from the environment; on a bad one prints what is wrong and exits with status 2."""
        try:
            return cls.read(os.environ if environ is None else environ)
        except SettingsError as problem:
            print(problem, file=sys.stderr)
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
            lines.append(f"{name} is {value}: {each['msg']}{remedy}" if field else each["msg"])
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


def _unknown(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not known to this service: {hint}unset it. Known: {', '.join(sorted(known))}"
