"""What NetworkPolicies allow, by the rules of networking.k8s.io/v1: who may connect to whom, at which port.

A connection needs both sides. A side that no policy selects in a direction is open in it; one that some select is open to
what any rule of any of them allows.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """A pod, or an address outside of the cluster (no namespace)."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = "10.244.0.9"
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of its containers."""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    """Beside the one that says the namespace's name."""


def allowed(policies: Iterable[Policy], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `port` of `target`."""
    known = list(policies)
    return _side(known, "Egress", source, target, target, port, protocol) and _side(
        known, "Ingress", target, source, target, port, protocol
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_expression(each, labels) for each in selector.get("matchExpressions", ()))


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case unknown:
            raise ValueError(f"no label selector has the operator {unknown!r}")


def _side(
    policies: Iterable[Policy],
    direction: str,
    ours: Endpoint,
    other: Endpoint,
    target: Endpoint,
    port: int,
    protocol: str,
) -> bool:
    if not ours.namespace:
        return True
    of_ours = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == ours.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], ours.labels)
    ]
    peers = "to" if direction == "Egress" else "from"
    return not of_ours or any(
        _ports(rule, target, port, protocol) and _peers(rule.get(peers), ours, other)
        for spec in of_ours
        for rule in spec.get(direction.lower()) or ()
    )


def _ports(rule: Mapping[str, Any], target: Endpoint, port: int, protocol: str) -> bool:
    if not rule.get("ports"):
        return True
    for each in rule["ports"]:
        wanted = each.get("port", port)
        first = target.ports.get(wanted) if isinstance(wanted, str) else wanted
        if first is None or each.get("protocol", "TCP") != protocol:
            continue
        if first <= port <= each.get("endPort", first):
            return True
    return False


def _peers(peers: Iterable[Mapping[str, Any]] | None, ours: Endpoint, other: Endpoint) -> bool:
    return not peers or any(_peer(each, ours, other) for each in peers)


def _peer(peer: Mapping[str, Any], ours: Endpoint, other: Endpoint) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(excepted) for excepted in block.get("except", ())
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": other.namespace, **other.namespace_labels}
        if not selects(peer["namespaceSelector"], named):
            return False
    elif other.namespace != ours.namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)
