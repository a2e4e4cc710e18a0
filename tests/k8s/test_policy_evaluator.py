"""The evaluator itself: each rule of NetworkPolicy on policies made up for it."""

from typing import Any

import pytest
from rendered.policies import Endpoint, allowed, selects

WEB = Endpoint("web", {"app": "web"}, "shop", "10.0.0.1", {"http": 8080})
DATABASE = Endpoint("database", {"app": "database"}, "shop", "10.0.0.2", {"sql": 5432})
NEIGHBOUR = Endpoint("neighbour", {"app": "web"}, "other", "10.0.0.3")
OUTSIDE = Endpoint("outside", address="203.0.113.7")


def policy(selector: dict[str, Any], **directions: list[Any]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop"},
        "spec": {
            "podSelector": selector,
            "policyTypes": [name.capitalize() for name in directions],
            **directions,
        },
    }


DENY = policy({}, ingress=[], egress=[])
OF_DATABASE = {"matchLabels": {"app": "database"}}
FROM_WEB = [{"podSelector": {"matchLabels": {"app": "web"}}}]


def test_what_no_policy_selects_is_open() -> None:
    assert allowed([], WEB, DATABASE, 5432)


def test_an_empty_list_of_rules_denies_everything() -> None:
    assert not allowed([DENY], WEB, DATABASE, 5432)
    assert not allowed([DENY], OUTSIDE, WEB, 8080)
    assert not allowed([DENY], WEB, OUTSIDE, 443)


def test_a_connection_needs_both_sides() -> None:
    into = policy(OF_DATABASE, ingress=[{"from": FROM_WEB}])
    out = policy({"matchLabels": {"app": "web"}}, egress=[{"to": [{"podSelector": OF_DATABASE}]}])
    assert not allowed([DENY, into], WEB, DATABASE, 5432)
    assert not allowed([DENY, out], WEB, DATABASE, 5432)
    assert allowed([DENY, into, out], WEB, DATABASE, 5432)
    assert not allowed([DENY, into, out], DATABASE, WEB, 8080)


def test_a_selector_of_pods_means_those_of_the_policys_own_namespace() -> None:
    into = policy(OF_DATABASE, ingress=[{"from": FROM_WEB}])
    assert allowed([into], WEB, DATABASE, 5432)
    assert not allowed([into], NEIGHBOUR, DATABASE, 5432)


def test_selectors_of_one_peer_are_both_needed_and_peers_are_alternatives() -> None:
    other = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}
    both = policy(OF_DATABASE, ingress=[{"from": [{**other, "podSelector": {"matchLabels": {"app": "none"}}}]}])
    either = policy(OF_DATABASE, ingress=[{"from": [other, {"podSelector": {"matchLabels": {"app": "none"}}}]}])
    assert not allowed([both], NEIGHBOUR, DATABASE, 5432)
    assert allowed([either], NEIGHBOUR, DATABASE, 5432)


@pytest.mark.parametrize(
    ("ports", "open_ports"),
    [
        ([{"port": "sql"}], {5432}),
        ([{"port": 80, "endPort": 82}], {80, 82}),
        ([{"port": 5432, "protocol": "UDP"}], set()),
        ([{"port": "http"}], set()),
        ([], {80, 82, 5432}),
    ],
)
def test_ports_are_numbers_ranges_or_names_of_the_target(ports: list[Any], open_ports: set[int]) -> None:
    into = policy(OF_DATABASE, ingress=[{"from": FROM_WEB, "ports": ports}])
    assert {port for port in (80, 82, 5432) if allowed([into], WEB, DATABASE, port)} == open_ports


def test_a_block_of_addresses_leaves_its_exceptions_out() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}
    out = policy({}, egress=[rule])
    assert allowed([out], WEB, OUTSIDE, 443)
    assert not allowed([out], WEB, DATABASE, 443)


def test_expressions_of_selectors() -> None:
    def matches(operator: str, *values: str, key: str = "app") -> bool:
        return selects({"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}, WEB.labels)

    assert matches("In", "web", "shop")
    assert not matches("In", "shop")
    assert matches("NotIn", "shop")
    assert not matches("NotIn", "web")
    assert matches("Exists")
    assert not matches("Exists", key="none")
    assert matches("DoesNotExist", key="none")
    assert not matches("DoesNotExist")
