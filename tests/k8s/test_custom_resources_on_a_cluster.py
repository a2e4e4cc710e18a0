"""TrainingRuns and EvalJobs at a real API server: what it admits, what `kubectl` shows, what the component's rights allow.

    make test-cluster TESTS=tests/k8s/test_custom_resources_on_a_cluster.py

The controller runs in this process, as the orchestrator's account, in front of stand-ins for runs and jobs: an API server
with the controllers of namespaces is enough, and no image. Definitions that were not there are taken away again.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from rendered.definitions import FOLDER
from rendered.kubectl import kubectl
from rendered.overlays import K8S

sys.path.insert(0, str(Path(__file__).parents[1] / "kubernetes" / "harness"))

from requested.place import Place, in_a_hurry, until
from standin_api.server import StandInApi
from troupe.v1 import evaluation_pb2
from troupe_kubernetes.api import Api
from troupe_orchestrator.custom_resources.resources import KINDS
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalState
from troupe_orchestrator.store.runs import RunState

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

EXAMPLES: Final = K8S.parent / "examples"
ROLES: Final = (K8S / "base" / "orchestrator" / "rbac.yaml", FOLDER / "rbac.yaml")
CRDS: Final = [f"{kind.plural}.troupe.dev" for kind in KINDS.values()]


@pytest.fixture(scope="module")
def definitions() -> Iterator[None]:
    there = kubectl("get", "crd", *CRDS, "--ignore-not-found", "-o", "name").stdout.split()
    for kind in KINDS.values():
        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(FOLDER / f"{kind.plural}.yaml"))
    kubectl("wait", "--for=condition=Established", "crd", *CRDS, "--timeout=60s")
    yield
    if not there:
        kubectl("delete", "crd", *CRDS, "--wait=false")


@pytest.fixture(scope="module")
def namespace(definitions: None) -> Iterator[str]:
    name = f"troupe-objects-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def account(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the orchestrator's account, with the rights of base and component and no others."""
    kubectl("-n", namespace, "create", "serviceaccount", "orchestrator")
    for file in ROLES:
        objects = list(yaml.safe_load_all(file.read_text()))
        for each in objects:
            for subject in each.get("subjects", ()):
                subject["namespace"] = namespace
        kubectl("-n", namespace, "apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    token = kubectl("-n", namespace, "create", "token", "orchestrator").stdout.strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout)
    config["users"] = [{"name": "orchestrator", "user": {"token": token}}]
    config["contexts"][0]["context"] |= {"user": "orchestrator", "namespace": namespace}
    file = tmp_path_factory.mktemp("account") / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture
async def here(account: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """An orchestrator that looks at the namespace's objects."""
    database = await Database.open(f"sqlite:///{tmp_path}/troupe.db", 30.0)
    nobody: StandInApi = None  # type: ignore[assignment]  # the server is a real one
    place = Place(nobody, Api.from_kubeconfig(file=str(account)), database)
    with in_a_hurry():
        await place.start()
        yield place
        await place.stop()
    await database.close()


@pytest.fixture(autouse=True)
def _no_object_is_left(namespace: str) -> Iterator[None]:
    yield
    with contextlib.suppress(AssertionError):
        kubectl("-n", namespace, "delete", "trainingruns,evaljobs", "--all", "--wait=false")


def example(file: str, name: str, **spec: Any) -> str:
    found = yaml.safe_load((EXAMPLES / file).read_text())
    found["metadata"]["name"] = name
    given = {key: value for key, value in (found["spec"] | spec).items() if value is not None}
    return yaml.safe_dump({**found, "spec": given})


def apply(namespace: str, manifest: str, *options: str) -> subprocess.CompletedProcess[str]:
    return kubectl("-n", namespace, "apply", "-f", "-", *options, stdin=manifest, check=False)


def patch(namespace: str, name: str, **spec: Any) -> subprocess.CompletedProcess[str]:
    body = json.dumps({"spec": spec})
    return kubectl("-n", namespace, "patch", name, "--type", "merge", "-p", body, check=False)


def got(namespace: str, name: str) -> dict[str, Any]:
    return dict(json.loads(kubectl("-n", namespace, "get", name, "-o", "json").stdout))


@pytest.mark.parametrize(("file", "kind"), [("training-run.yaml", "trainingrun"), ("eval-job.yaml", "evaljob")])
def test_an_example_is_admitted_and_nothing_of_it_is_dropped(namespace: str, file: str, kind: str) -> None:
    applied = apply(namespace, example(file, "one"))
    assert (applied.returncode, applied.stderr) == (0, "")
    sent = yaml.safe_load(example(file, "one"))["spec"]
    assert got(namespace, f"{kind}/one")["spec"] == {"desiredState": "Running", **sent}


@pytest.mark.parametrize(
    ("file", "spec", "said"),
    [
        ("training-run.yaml", {"config": None}, "spec.config: Required value"),
        ("training-run.yaml", {"config": {"steps": 0}}, "spec.config.steps"),
        ("training-run.yaml", {"desiredState": "Stopped"}, "spec.desiredState: Unsupported value"),
        ("training-run.yaml", {"config": {"dataset": {"train": "/t"}, "steps": 1, "stages": [{"train": "me", "steps": 1}]}},
         "spec.config.stages[0].train: Unsupported value"),
        ("eval-job.yaml", {"dataset": {}}, "needs one of path and inline"),
        ("eval-job.yaml", {"dataset": {"path": "/a", "inline": "b"}}, "needs one of path and inline"),
        ("eval-job.yaml", {"mode": "Majority"}, "votes or equalTokens is needed by mode Majority"),
        ("eval-job.yaml", {"votes": 3}, "votes or equalTokens is needed by mode Majority, and read by no other"),
        ("eval-job.yaml", {"mode": "FixedWorkflow"}, "script is needed by mode FixedWorkflow"),
        ("eval-job.yaml", {"target": {}}, "needs one of current, checkpoint, endpoint"),
        ("eval-job.yaml", {"target": {"current": {}, "endpoint": {}}}, "needs one of current, checkpoint, endpoint"),
        ("eval-job.yaml", {"mode": "SingleAgent", "target": {"endpoint": {"designer": "h:1"}}}, "asked by mode System only"),
        ("eval-job.yaml", {"desiredState": "Paused"}, "spec.desiredState: Unsupported value"),
    ],
)  # fmt: skip
def test_a_bad_spec_is_refused_when_it_is_applied(namespace: str, file: str, spec: dict[str, Any], said: str) -> None:
    refused = apply(namespace, example(file, "bad", **spec))
    assert refused.returncode != 0
    assert said in refused.stderr


def test_of_a_training_run_only_the_desired_state_changes(namespace: str) -> None:
    apply(namespace, example("training-run.yaml", "one"))
    name = "trainingrun/one"
    for change, said in (
        ({"queue": False}, "queue cannot change"),
        ({"config": {"steps": 3}}, "config cannot change"),
        ({"config": {"seed": 3}}, "config cannot change"),
        # What the schema does not know is compared too.
        ({"config": {"unknown": 3}}, "config cannot change"),
        ({"config": {"credit": {"options": {"epsilon": 1}}}}, "config cannot change"),
        ({"config": {"stages": [{"train": "executor", "steps": 1, "until": "plateau"}]}}, "config cannot change"),
    ):
        refused = patch(namespace, name, **change)
        assert refused.returncode != 0, change
        assert said in refused.stderr
    for desired in ("Paused", "Running", "Cancelled"):
        assert patch(namespace, name, desiredState=desired).returncode == 0
    assert "stays so" in patch(namespace, name, desiredState="Running").stderr


def test_of_an_eval_job_only_the_desired_state_changes(namespace: str) -> None:
    apply(namespace, example("eval-job.yaml", "one"))
    for change, said in (
        ({"samples": 5}, "samples cannot change"),
        ({"limit": 5}, "limit cannot change"),
        ({"sampling": None}, "sampling cannot change"),
        ({"dataset": {"inline": "{}"}}, "dataset cannot change"),
        ({"target": {"current": None, "checkpoint": {"best": True}}}, "target cannot change"),
    ):
        refused = patch(namespace, "evaljob/one", **change)
        assert refused.returncode != 0, change
        assert said in refused.stderr
    assert patch(namespace, "evaljob/one", desiredState="Cancelled").returncode == 0


def test_a_key_that_nobody_knows_is_kept_for_the_orchestrator_to_name(namespace: str) -> None:
    config = yaml.safe_load(example("training-run.yaml", "odd"))["spec"]["config"]
    assert apply(namespace, example("training-run.yaml", "odd", config={**config, "stepz": 3})).returncode == 0
    assert got(namespace, "trainingrun/odd")["spec"]["config"]["stepz"] == 3


async def test_a_run_is_waited_for_shown_and_described(namespace: str, here: Place) -> None:
    apply(namespace, example("training-run.yaml", "one"))
    uid = str(got(namespace, "trainingrun/one")["metadata"]["uid"])
    await until(lambda: here.runs.created == [uid])
    await reaches(namespace, "trainingrun/one", "Running")
    header, row = kubectl("-n", namespace, "get", "trun").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "STAGE", "STEP", "POLICY", "REWARD", "AGE"]
    assert row.split()[:5] == ["one", "Running", "1", "executor", "0/2"]
    assert patch(namespace, "trainingrun/one", desiredState="Paused").returncode == 0
    await reaches(namespace, "trainingrun/one", "Paused")
    kubectl("-n", namespace, "wait", "--for=condition=Paused", "trainingrun/one", "--timeout=5s")
    assert patch(namespace, "trainingrun/one", desiredState="Running").returncode == 0
    await reaches(namespace, "trainingrun/one", "Running")
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    await reaches(namespace, "trainingrun/one", "Succeeded")
    waited = kubectl("-n", namespace, "wait", "--for=condition=Complete", "trainingrun/one", "--timeout=5s")
    assert waited.stdout == "trainingrun.troupe.dev/one condition met\n"
    assert re.search(r"Type:\s+Complete", kubectl("-n", namespace, "describe", "trainingrun", "one").stdout)


async def test_a_bad_config_is_an_event_and_a_condition_that_name_the_key(namespace: str, here: Place) -> None:
    config = yaml.safe_load(example("training-run.yaml", "odd"))["spec"]["config"]
    apply(namespace, example("training-run.yaml", "odd", config={**config, "stepz": 3}))
    await reaches(namespace, "trainingrun/odd", "Failed")
    assert "spec.config.stepz: unknown key" in got(namespace, "trainingrun/odd")["status"]["reason"]
    await until(lambda: "Refused" in kubectl("-n", namespace, "describe", "trainingrun", "odd").stdout)


async def test_an_eval_job_is_waited_for_and_its_accuracy_listed(namespace: str, here: Place) -> None:
    apply(namespace, example("eval-job.yaml", "sums"))
    uid = str(got(namespace, "evaljob/sums")["metadata"]["uid"])
    await reaches(namespace, "evaljob/sums", "Running")
    summary = evaluation_pb2.EvalSummary(success=0.5, success_low=0.25, success_high=0.75, coverage=1.0)
    await here.jobs.becomes(uid, EvalState.SUCCEEDED, summary=summary)
    await reaches(namespace, "evaljob/sums", "Succeeded")
    kubectl("-n", namespace, "wait", "--for=condition=Complete", "evaljob/sums", "--timeout=5s")
    header, row = kubectl("-n", namespace, "get", "evaljobs").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "DONE", "TOTAL", "ACCURACY", "CI95", "AGE"]
    assert row.split()[:6] == ["sums", "Succeeded", "0", "12", "0.500", "0.250-0.750"]


async def test_deleting_an_object_is_done_at_once_and_cancels_its_run(namespace: str, here: Place) -> None:
    apply(namespace, example("training-run.yaml", "one"))
    uid = str(got(namespace, "trainingrun/one")["metadata"]["uid"])
    await reaches(namespace, "trainingrun/one", "Running")
    kubectl("-n", namespace, "delete", "trainingrun", "one", "--timeout=10s")

    async def cancelled() -> bool:
        return (await here.runs.get(uid)).state is RunState.CANCELLED

    await until(cancelled)


def test_the_account_may_write_a_status_and_nothing_else_of_an_object(namespace: str, account: Path) -> None:
    apply(namespace, example("training-run.yaml", "one"))
    asked = (
        "list trainingruns.troupe.dev",
        "watch evaljobs.troupe.dev",
        "patch trainingruns.troupe.dev --subresource=status",
        "patch trainingruns.troupe.dev",
        "create trainingruns.troupe.dev",
        "delete evaljobs.troupe.dev",
        "get secrets",
        "create pods",
    )
    as_account = ("--kubeconfig", str(account), "-n", namespace, "auth", "can-i")
    may = {verb: kubectl(*as_account, *verb.split(), check=False).stdout.strip() for verb in asked}
    assert [verb for verb, answer in may.items() if answer == "yes"] == list(asked[:3])


def test_a_namespace_with_objects_is_gone_though_nobody_looks_at_them(definitions: None) -> None:
    name = f"troupe-objects-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    for file in ("training-run.yaml", "eval-job.yaml"):
        assert apply(name, example(file, "one")).returncode == 0
    kubectl("delete", "namespace", name, "--timeout=90s")


async def reaches(namespace: str, name: str, phase: str) -> None:
    """Returns once an object is in a phase, for the spec as it is."""

    def there() -> bool:
        found = got(namespace, name)
        status = found.get("status", {})
        return (status.get("phase"), status.get("observedGeneration")) == (phase, found["metadata"]["generation"])

    await until(there, lambda: str(got(namespace, name)))
