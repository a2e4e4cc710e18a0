"""Who serves, how much of it is taken, what waits, and the room in the store: read when Prometheus asks, in its thread.

What is read is small and read whole (a tuple of members, a number): figures of one answer may be a call apart, no more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from troupe_orchestrator.engines import Engines
from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.rotation import Rotation, Seats


class FleetCollector(Collector):
    """Families about the services and the store; about the store alone where there are no services."""

    def __init__(self, engines: Engines | None, data_dir: Path) -> None:
        self._engines = engines
        self._data_dir = data_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand, so that registering asks nobody."""
        return ()

    def collect(self) -> Iterator[Metric]:
        usage = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily("troupe_store_bytes", "Size of the file system of the data folder.", usage.total)
        yield GaugeMetricFamily("troupe_store_free_bytes", "Free bytes of it.", usage.free)
        if self._engines is not None:
            yield from _of_services(self._engines)


@contextmanager
def exported(engines: Engines | None, data_dir: Path) -> Iterator[None]:
    """While the block runs its families stand in the process's registry."""
    collector = FleetCollector(engines, data_dir)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


def _of_services(engines: Engines) -> Iterator[Metric]:
    replicas = GaugeMetricFamily("troupe_replicas", "Replicas of a service that are known.", labels=["service"])
    serving = GaugeMetricFamily("troupe_replicas_serving", "Those in rotation.", labels=["service"])
    seats = GaugeMetricFamily("troupe_seats", "What the replicas in rotation take at once.", labels=["service", "kind"])
    taken = GaugeMetricFamily("troupe_seats_taken", "Seats that work holds now.", labels=["service", "kind"])
    services: tuple[Rotation[Any], ...] = (engines.designer, engines.executor, engines.sandboxes)
    for rotation in services:
        members = rotation.replicas()
        fit = [each for each in members if rotation.in_rotation(each)]
        replicas.add_metric([rotation.service], len(members))
        serving.add_metric([rotation.service], len(fit))
        for kind, held in _seats(rotation, fit):
            seats.add_metric([rotation.service, kind], sum(each.total for each in held))
            taken.add_metric([rotation.service, kind], sum(each.taken for each in held))
    yield from (replicas, serving, seats, taken)
    waiting = GaugeMetricFamily("troupe_admission_waiting", "Pieces of work that wait for seats.", labels=["kind"])
    for kind, count in engines.services.admission.waiting().items():
        waiting.add_metric([kind], count)
    yield waiting
    current = GaugeMetricFamily(
        "troupe_policy_current_version",
        "Number of the version that the replicas in rotation serve.",
        labels=["policy", "lineage"],
    )
    for policy in engines.policies:
        if (version := policy.fleet.current) is not None:
            current.add_metric([policy.policy_id, version.lineage], version.number)
    yield current


def _seats(rotation: Rotation[Any], members: list[Any]) -> list[tuple[str, list[Seats]]]:
    if not isinstance(rotation, PolicyFleet):
        return [("workflows", [each.workflows for each in members]), ("tests", [each.tests for each in members])]
    # Replicas that forward have no seats of their own.
    return [("executions", [each.seats for each in members])] if rotation.engines is rotation else []
