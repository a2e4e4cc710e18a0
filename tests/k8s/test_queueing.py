"""The component for Kueue: which workloads wait for quota."""

from typing import Final

import pytest
from rendered.overlays import Manifests, render

QUEUE: Final = "kueue.x-k8s.io/queue-name"


@pytest.fixture(params=["local", "cluster"], scope="module")
def queued(request: pytest.FixtureRequest) -> Manifests:
    return render(f"{request.param}+kueue")


def test_engines_sandboxes_and_learner_wait_for_quota_and_those_who_say_so_do_not(queued: Manifests) -> None:
    waiting = {
        each["metadata"]["name"] for each in queued.objects if each["metadata"].get("labels", {}).get(QUEUE) == "troupe"
    }
    assert waiting == {each.name for each in queued.workloads} - {"orchestrator", "postgres", "credentials"}


def test_pods_get_their_label_from_kueue_alone(queued: Manifests) -> None:
    assert not any(QUEUE in each.labels for each in queued.workloads)
