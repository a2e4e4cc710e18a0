"""What the doctor makes of what an API server says."""

from __future__ import annotations

import pytest
from troupe_client.doctor.findings import Level
from troupe_client.kubernetes.examination import clock, node_clocks, server, storage

DATE = "Sat, 21 Nov 2026 12:00:00 GMT"
NOON = 1795262400.0


def lease(name: str, renewed: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"renewTime": renewed}}


@pytest.mark.parametrize(("seconds", "said"), [(60, "60 s ahead of"), (-90, "90 s behind")])
def test_a_clock_that_differs_from_the_api_servers_is_told_with_its_direction(seconds: float, said: str) -> None:
    found = clock(DATE, NOON + seconds)
    assert found.level is Level.ERROR
    assert said in found.text


def test_a_clock_within_seconds_is_right() -> None:
    assert clock(DATE, NOON + 2).level is Level.OK


def test_a_heartbeat_from_the_future_is_of_a_node_that_is_ahead() -> None:
    leases = [lease("a", "2026-11-21T11:59:55.000000Z"), lease("b", "2026-11-21T12:01:00.000000Z")]
    (found,) = node_clocks(leases, DATE)
    assert found.level is Level.ERROR
    assert found.text == "b is at least 60 s ahead of the API server"


def test_a_node_without_heartbeats_is_named() -> None:
    (found,) = node_clocks([lease("a", "2026-11-21T11:50:00.000000Z")], DATE)
    assert found.text.startswith("a sent no heartbeat")


@pytest.mark.parametrize(("version", "level"), [("v1.34.4", Level.OK), ("v1.29.9", Level.ERROR), ("", Level.WARNING)])
def test_a_server_that_is_too_old_is_refused(version: str, level: Level) -> None:
    assert server("https://a", {"gitVersion": version}).level is level


def test_classes_without_a_default_are_named() -> None:
    (found,) = storage([{"metadata": {"name": "b"}}, {"metadata": {"name": "a"}}], [])
    assert found.text == "no StorageClass is the default one, of a, b"
