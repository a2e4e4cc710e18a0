"""What a real API server says to the manifests, before anything is made of them: a dry run in an enforcing namespace."""

from collections.abc import Iterator
from typing import Final

import pytest
import yaml
from rendered.kubectl import kubectl
from rendered.overlays import OVERLAYS, render

pytestmark = pytest.mark.cluster
NAMESPACE: Final = "troupe-admission"


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """One like the manifests' own, which may be in use."""
    (own,) = render("local").of("Namespace")
    made = {**own, "metadata": {**own["metadata"], "name": NAMESPACE}}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(made))
    yield NAMESPACE
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_admits_every_object_without_a_warning(overlay: str, namespace: str) -> None:
    objects = [each for each in render(overlay).objects if each["kind"] != "Namespace"]
    moved = yaml.safe_dump_all(objects).replace("namespace: troupe\n", f"namespace: {namespace}\n")
    applied = kubectl("apply", "--dry-run=server", "-f", "-", stdin=moved)
    assert applied.stdout.count("created (server dry run)") == len(objects), applied.stdout
    assert "Warning" not in applied.stderr, applied.stderr


def test_a_pod_that_breaks_the_standard_is_not_admitted(namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root", "namespace": namespace},
        "spec": {"containers": [{"name": "root", "image": "localhost/none:1"}]},
    }
    refused = kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod), check=False)
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr
