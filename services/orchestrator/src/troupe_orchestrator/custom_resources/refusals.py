"""Why nothing is made for an object, as its status says it. Pure."""

from dataclasses import dataclass
from typing import Final

from troupe_contracts.errors import InvalidArgument, ServiceError

_REMEDY: Final = "mend it, delete this object and apply it again"
_CONFIG: Final = "config"
"""Its keys are those of the YAML, everything else has JSON names."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A word and a text."""

    reason: str
    message: str


def refusal_of(error: ServiceError) -> Refusal:
    """What a call would have been refused with, by the fields of the spec."""
    if isinstance(error, InvalidArgument):
        named = "; ".join(f"{_field(field)}: {message}" for field, message in error.violations)
        return Refusal("InvalidSpec", f"{named}; {_REMEDY}")
    return Refusal(type(error).__name__, f"{error}; {_REMEDY}")


def _field(field: str) -> str:
    """A field of a request, as one of the spec."""
    if field == "spec":
        return field
    first, *rest = field.split(".")
    if first == _CONFIG:
        return f"spec.{field}"
    return ".".join(("spec", *(_json_name(part) for part in (first, *rest))))


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
