"""The `local` overlay, applied, as it is or varied: its pods, its services from this machine, its store."""

from __future__ import annotations

import base64
import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import yaml
from rendered.kubectl import kubectl
from rendered.overlays import K8S, Manifests
from troupe.v1 import learner_pb2, learner_pb2_grpc, policy_pb2, policy_pb2_grpc
from troupe_client.kubernetes.forwarding import forwarded_pod, forwarded_service
from troupe_client.profile import Profile, load_profile
from troupe_contracts.access import Role
from troupe_contracts.channel import connect
from troupe_contracts.identity import NOBODY, Identity, assume, own
from troupe_kubernetes.api import Api

from deployed.forwards import Forwards, forwards
from deployed.store import ClusterStore

NAMESPACE: Final = "troupe"
OVERLAY: Final = str(K8S / "overlays" / "local")
WORKLOADS: Final = {
    "orchestrator": "statefulset/orchestrator",
    "learner": "statefulset/learner",
    "executor": "deployment/executor",
    "designer": "deployment/designer",
    "sandbox": "deployment/sandbox",
    "postgres": "statefulset/postgres",
}
START_SECONDS: Final = 1200
_COMPONENT: Final = "app.kubernetes.io/component"
SERVICE_PORT: Final = 50051
_DATABASE_PORT: Final = 5432


@dataclass(frozen=True)
class Variant:
    """What is not as the overlay alone has it."""

    credentials: Identity = NOBODY
    """What is shown beside a token."""
    learner: dict[str, object] = field(default_factory=lambda: {"engine": "deepspeed", "ranks": 1})
    """A local profile's learner that computes as the deployment's does."""


class Installation:
    """Use `installed`."""

    variant = Variant()

    def __init__(self, api: Api, ports: Forwards, folder: Path) -> None:
        self.folder = folder
        self._api = api
        self._targets = {
            service: ports.open(partial(forwarded_service, api, service))
            for service in ("orchestrator", "learner", "executor", "sandbox")
        }
        self.store = ClusterStore(
            ports.open(partial(forwarded_pod, api, "postgres-0", _DATABASE_PORT)),
            partial(secret, "postgres-password", "password"),
            lambda: self.inside("orchestrator"),
        )
        self._starter: Path | None = None

    def target(self, service: str) -> str:
        """host:port on this machine that leads to a ready pod of it, of which there may be another each time."""
        return self._targets[service]

    def identity(self, role: Role) -> Identity:
        return replace(self.variant.credentials, token=secret(f"{role}-token", "token"))

    async def learner(self) -> learner_pb2.LearnerInfo:
        async with connect(self.target("learner"), own()) as channel:
            return await learner_pb2_grpc.LearnerStub(channel).GetLearner(learner_pb2.GetLearnerRequest())

    async def engine(self) -> policy_pb2.PolicyInfo:
        async with connect(self.target("executor"), own()) as channel:
            return await policy_pb2_grpc.PolicyStub(channel).GetPolicy(policy_pb2.GetPolicyRequest())

    async def updates_of(self, pod: str) -> int:
        """Those of the run that are in the weights of one engine."""
        async with forwarded_pod(self._api, pod, SERVICE_PORT) as target, connect(target, own()) as channel:
            return (await policy_pb2_grpc.PolicyStub(channel).GetPolicy(policy_pb2.GetPolicyRequest())).version.number

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Those that are not on their way out."""
        found = kubectl("-n", NAMESPACE, "get", "pods", "-l", f"{_COMPONENT}={component}", "-o", "json")
        return [pod for pod in json.loads(found.stdout)["items"] if "deletionTimestamp" not in pod["metadata"]]

    def pod(self, component: str) -> str:
        """Name of one."""
        return str(self.pods(component)[0]["metadata"]["name"])

    def containers(self, component: str) -> frozenset[str]:
        """Those of its pods that run now, each start another."""
        found = kubectl("-n", NAMESPACE, "get", "pods", "-l", f"{_COMPONENT}={component}", "-o", "json")
        statuses = [
            status for pod in json.loads(found.stdout)["items"] for status in pod["status"].get("containerStatuses", ())
        ]
        return frozenset(status["containerID"] for status in statuses if "running" in status["state"])

    def inside(self, component: str, pod: str = "") -> list[str]:
        """What runs a command in a pod of it; any, unless one is named."""
        return ["kubectl", "-n", NAMESPACE, "exec", pod or self.pod(component), "-c", component, "--"]

    def inside_each(self, component: str) -> list[list[str]]:
        """What runs a command in each of its pods."""
        return [self.inside(component, pod["metadata"]["name"]) for pod in self.pods(component)]

    def wait(self, *components: str, seconds: int = START_SECONDS) -> None:
        """Returns when all replicas of these, or of everything, are ready and of the newest template."""
        rolled_out(*components, seconds=seconds)

    def starter(self) -> Path:
        """A copy of the starter's folder, with policy, tasks and configs."""
        if self._starter is None:
            command = [*self.inside("orchestrator"), "tar", "-C", "/store", "-c", "starter"]
            archive = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
            with tarfile.open(fileobj=BytesIO(archive)) as packed:
                packed.extractall(self.folder, filter="data")
            self._starter = self.folder / "starter"
        return self._starter

    def learner_profile(self) -> Profile:
        """A local profile whose learner computes as the deployment's does."""
        profile = yaml.safe_load((self.starter() / "profile.yaml").read_text())
        for section, key in (("executor", "model"), ("designer", "prompt")):
            profile[section][key] = str((self.starter() / profile[section][key]).resolve())
        profile["learner"] = self.variant.learner
        file = self.folder / "profile.yaml"
        file.write_text(yaml.safe_dump(profile))
        return load_profile(file)


def secret(name: str, key: str) -> str:
    """What stands in a Secret of the deployment."""
    found = json.loads(kubectl("-n", NAMESPACE, "get", "secret", name, "-o", "json").stdout)
    return base64.b64decode(found["data"][key]).decode().strip()


def rolled_out(*components: str, seconds: int = START_SECONDS) -> None:
    """See `Installation.wait`."""
    for component in components or WORKLOADS:
        kubectl(
            *("-n", NAMESPACE, "rollout", "status", WORKLOADS[component], f"--timeout={seconds}s"), seconds=seconds + 30
        )


@contextmanager
def installed(folder: Path) -> Iterator[Installation]:
    """The README's two commands, then ports that lead there."""
    kubectl("apply", "-k", OVERLAY)
    ready = "--for=jsonpath={.status.readyReplicas}=1"
    kubectl(
        *("-n", NAMESPACE, "wait", ready, WORKLOADS["orchestrator"], f"--timeout={START_SECONDS}s"),
        seconds=START_SECONDS + 30,
    )
    rolled_out()  # Where it was installed before, with other manifests, pods that were ready are on their way out.
    with forwards() as ports:
        installation = Installation(Api.from_kubeconfig(namespace=NAMESPACE), ports, folder)
        assume(installation.identity(Role.ORCHESTRATOR))
        yield installation


@contextmanager
def varied(installation: Installation, manifests: Manifests, variant: Variant) -> Iterator[None]:
    """While the block runs, the deployment is another."""
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests.objects))
    installation.variant = variant
    try:
        assume(installation.identity(Role.ORCHESTRATOR))
        installation.wait()
        yield
    finally:
        kubectl("apply", "-k", OVERLAY)
        del installation.variant
        assume(installation.identity(Role.ORCHESTRATOR))
        installation.wait()
