"""Targets that name a Service: `k8s:///executor`, `k8s:///executor.other-namespace:grpc`. Pure."""

import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "k8s:///"
_PORT: Final = "grpc"
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS: Final = re.compile(rf"(?P<service>{_LABEL})(?:\.(?P<namespace>{_LABEL}))?(?::(?P<port>{_LABEL}))?")


class NoClusterError(RuntimeError):
    """There is no API server to ask, or no right to."""


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """All endpoints of a Service."""

    service: str
    namespace: str
    """Empty for the orchestrator's own."""
    port: str
    """Name of the port."""


def names_service(target: str) -> bool:
    """Whether a target names a Service, not a host and a port."""
    return target.startswith("k8s:")


def parse_address(target: str) -> ServiceAddress:
    """The Service that a target names.

    Raises:
        ValueError: it is none.
    """
    matched = _ADDRESS.fullmatch(target.removeprefix(SCHEME)) if target.startswith(SCHEME) else None
    if matched is None:
        raise ValueError(f"{target!r} must be {SCHEME}SERVICE[.NAMESPACE][:PORT], with the name of a port")
    return ServiceAddress(matched["service"], matched["namespace"] or "", matched["port"] or _PORT)
