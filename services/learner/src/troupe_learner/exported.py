"""What the learner exports for Prometheus, beside the calls that `troupe_contracts` counts: read when it is asked."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from troupe_learner.front import Front, State


class LearnerCollector(Collector):
    """State of one learner, and the room that it has."""

    def __init__(self, front: Front, work_dir: Path) -> None:
        self._front = front
        self._work_dir = work_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand, so that registering asks nobody."""
        return ()

    def collect(self) -> Iterator[Metric]:
        front = self._front
        state = GaugeMetricFamily("troupe_learner_state", "1 for the state that it is in.", labels=["policy", "state"])
        now = front.state
        for each in State:
            state.add_metric([front.policy_id, each.value], float(each is now))
        yield state
        yield _gauge(front, "troupe_learner_generation", "Number of the newest generation of ranks.", front.generation)
        yield _gauge(front, "troupe_learner_applied_steps", "Steps in the current weights.", front.ledger.applied_step)
        usage = shutil.disk_usage(self._work_dir)
        yield _gauge(front, "troupe_learner_work_bytes", "Size of the work folder's file system.", usage.total)
        yield _gauge(front, "troupe_learner_work_free_bytes", "Free bytes of it.", usage.free)


def _gauge(front: Front, name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["policy"])
    family.add_metric([front.policy_id], value)
    return family
