"""Overlays as `kubectl apply -k` would send them, and those components that no overlay has, on the one that they fit."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

K8S: Final = Path(__file__).parents[4] / "k8s"
OVERLAYS: Final = tuple(sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml")))
# Components that no overlay has, and on which one each is rendered.
ALONE: Final[Mapping[str, str]] = {
    "crds": "local",
    "kueue": "cluster",
    "monitoring": "local",
    "monitoring-operator": "cluster",
    "sandbox-userns": "local",
    "scaling-by-stage": "local",
    "tls-cert-manager": "local",
}
RENDERED: Final = (*OVERLAYS, *(f"{overlay}+{component}" for component, overlay in ALONE.items()))
"""What `render` is asked for by tests of what holds everywhere."""
_WORKLOADS: Final = ("Deployment", "StatefulSet", "Job")
_POD_INDEX: Final = "metadata.labels['apps.kubernetes.io/pod-index']"


@dataclass(frozen=True)
class Workload:
    """Something that makes pods."""

    kind: str
    name: str
    spec: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        return {**self.spec["template"]["metadata"]["labels"], **self._given()}

    def _given(self) -> dict[str, str]:
        """What the StatefulSet's controller adds to the first pod."""
        return {"apps.kubernetes.io/pod-index": "0"} if self.kind == "StatefulSet" else {}

    @property
    def pod(self) -> dict[str, Any]:
        return dict(self.spec["template"]["spec"])

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Those of the pod, its init containers first."""
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def serves(self) -> bool:
        """False for what runs to its end."""
        return self.kind != "Job"


@dataclass(frozen=True)
class Manifests:
    """All objects of one overlay."""

    objects: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    @property
    def workloads(self) -> list[Workload]:
        return [
            Workload(each["kind"], each["metadata"]["name"], each["spec"])
            for each in self.objects
            if each["kind"] in _WORKLOADS
        ]

    def environment(self, workload: Workload, container: dict[str, Any]) -> dict[str, str]:
        """What a container of the first pod sees of its ConfigMaps and its own list; what the cluster fills in is the
        field's path, but for the pod's index.
        """
        seen: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            seen |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        for each in container.get("env", ()):
            filled_in = each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"]
            seen[each["name"]] = "0" if filled_in == _POD_INDEX else filled_in
        return seen


@cache
def render(name: str) -> Manifests:
    """An overlay, or OVERLAY+COMPONENT, rendered by kubectl or kustomize; without either the test is skipped."""
    overlay, _, component = name.partition("+")
    if not component:
        return render_folder(K8S / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as folder:
        return render_with(overlay, component, Path(folder))


def render_with(overlay: str, component: str, folder: Path) -> Manifests:
    """An overlay with one component more; `folder` is empty, for us, and can be applied after."""
    added = {
        "namespace": "troupe",
        "resources": [os.path.relpath(K8S / "overlays" / overlay, folder.resolve())],
        "components": [os.path.relpath(K8S / "components" / component, folder.resolve())],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(added))
    return render_folder(folder)


def render_folder(folder: Path) -> Manifests:
    rendered = subprocess.run([*_renderer(), str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert rendered.returncode == 0, rendered.stderr
    documents = yaml.load_all(rendered.stdout, yaml.CSafeLoader)  # in C: some of them have thousands of lines
    return Manifests(tuple(each for each in documents if each is not None))


def _renderer() -> list[str]:
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    pytest.skip("needs kubectl or kustomize on the PATH, to render the overlays")
