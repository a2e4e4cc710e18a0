"""The component `crds`: its definitions are those of the contracts, the examples fit them, and the rights are no more."""

import subprocess
import sys
from typing import Any, Final

import pytest
import yaml
from rendered.definitions import FOLDER, definition, problems, schema
from rendered.overlays import K8S, Manifests, render
from troupe.v1 import common_pb2, evaluation_pb2, training_pb2
from troupe_orchestrator.custom_resources import eval_jobs, training_runs
from troupe_orchestrator.custom_resources.backing import Shown
from troupe_orchestrator.custom_resources.eval_jobs import create_eval_request, dataset_of
from troupe_orchestrator.custom_resources.messages import fields_of
from troupe_orchestrator.custom_resources.projection import status_of
from troupe_orchestrator.custom_resources.resources import (
    API_VERSION,
    KINDS,
    TRAINING_RUN,
    Desired,
    Kind,
    read_resource,
)
from troupe_orchestrator.custom_resources.training_runs import create_run_request
from troupe_orchestrator.evaluation.requests import check_request, load_dataset
from troupe_orchestrator.run_config import Budgets, parse_run_config
from troupe_orchestrator.settings import OrchestratorSettings
from troupe_orchestrator.store.object_requests import ObjectRequest
from troupe_orchestrator.store.runs import RunState
from troupe_orchestrator.training.messages import timestamp

EXAMPLES: Final = K8S.parent / "examples"
NAMES: Final = ("training-run.yaml", "eval-job.yaml")
UID: Final = "0f6d2a4e-1111-4222-8333-444455556666"


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / name).read_text()))


def changed(name: str, **spec: Any) -> dict[str, Any]:
    found = example(name)
    return {**found, "spec": {key: value for key, value in {**found["spec"], **spec}.items() if value is not None}}


def plural(found: dict[str, Any]) -> str:
    return KINDS[found["kind"]].plural


@pytest.fixture
def with_objects() -> Manifests:
    return render("local+crds")


def test_the_definitions_are_what_is_made_of_the_contracts() -> None:
    checked = subprocess.run(
        [sys.executable, str(FOLDER / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_example_fits_its_schema(name: str) -> None:
    found = example(name)
    assert found["apiVersion"] == API_VERSION
    assert problems(plural(found), found) == []


def test_the_example_of_a_run_is_one_that_the_orchestrator_takes() -> None:
    request = create_run_request(UID, example("training-run.yaml")["spec"])
    assert (request.run_id, request.queue) == (UID, True)
    assert parse_run_config(request.config).steps == 2


def test_the_example_of_a_job_is_one_that_the_orchestrator_takes() -> None:
    found = example("eval-job.yaml")
    found["metadata"] |= {"namespace": "troupe", "uid": UID, "resourceVersion": "1"}
    resource = read_resource(KINDS["EvalJob"], found)
    request = create_eval_request(resource, dataset_of(resource.spec))
    check_request(request, Budgets())
    dataset = load_dataset(request, request.dataset)
    assert (len(dataset.tasks), dataset.errors, request.samples) == (3, (), 4)


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("training-run.yaml", {"config": None}, "'config' is a required property"),
        ("training-run.yaml", {"config": {"steps": 0}}, "$.spec.config.steps: 0 is less than the minimum of 1"),
        ("training-run.yaml", {"config": {"stages": []}}, "$.spec.config.stages"),
        ("training-run.yaml", {"config": {"optimization": {"learning_rate": 0}}}, "learning_rate: 0 is less than"),
        ("training-run.yaml", {"config": {"optimization": {"clip_low": 1}}}, "clip_low: 1 is greater than"),
        ("training-run.yaml", {"desiredState": "Stopped"}, "$.spec.desiredState: 'Stopped' is not one of"),
        ("training-run.yaml", {"runId": "mine"}, "'runId' was unexpected"),
        ("eval-job.yaml", {"dataset": None}, "'dataset' is a required property"),
        ("eval-job.yaml", {"dataset": {"path": "held_out.jsonl"}}, "$.spec.dataset.path"),
        ("eval-job.yaml", {"samples": 257}, "$.spec.samples: 257 is greater than the maximum"),
        ("eval-job.yaml", {"mode": "EVAL_MODE_SYSTEM"}, "$.spec.mode"),
        ("eval-job.yaml", {"sampling": {"seed": 3}}, "'temperature' is a required property"),
        ("eval-job.yaml", {"desiredState": "Paused"}, "$.spec.desiredState"),
    ],
)
def test_a_schema_refuses_what_it_can(name: str, spec: dict[str, Any], said: str) -> None:
    found = changed(name, **spec)
    assert said in "\n".join(problems(plural(found), found))


def test_keys_of_a_config_that_nobody_knows_are_kept_for_the_orchestrator_to_refuse() -> None:
    def mappings(part: dict[str, Any]) -> list[dict[str, Any]]:
        below = [*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])]
        return [part, *(each for one in below for each in mappings(one))]

    config = schema("trainingruns")["properties"]["spec"]["properties"]["config"]
    pruned = [
        each for each in mappings(config) if "properties" in each and "x-kubernetes-preserve-unknown-fields" not in each
    ]
    assert pruned == []


def test_no_bound_is_beyond_what_an_api_server_reads_exactly() -> None:
    def bounds(part: Any) -> list[float]:
        below = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        own = [part["maximum"]] if isinstance(part, dict) and isinstance(part.get("maximum"), int | float) else []
        return [*own, *(bound for one in below for bound in bounds(one))]

    found = [bound for name in ("trainingruns", "evaljobs") for bound in bounds(schema(name))]
    assert 2**31 - 1 in found
    assert max(found) <= 2**53


@pytest.mark.parametrize("kind", KINDS.values())
def test_each_field_of_a_spec_but_the_desired_state_is_said_not_to_change(kind: Kind) -> None:
    spec = schema(kind.plural)["properties"]["spec"]
    rules = [each["rule"] for each in spec["x-kubernetes-validations"] if "oldSelf" in each["rule"]]
    for field in spec["properties"]:
        assert any(f"self.{field} == oldSelf.{field}" in rule for rule in rules) == (field != "desiredState")
    assert any("'Cancelled'" in rule for rule in rules)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("trainingruns", ["PHASE", "STAGE", "STEP", "POLICY", "REWARD", "AGE"]),
        ("evaljobs", ["PHASE", "DONE", "TOTAL", "ACCURACY", "CI95", "AGE"]),
    ],
)
def test_columns_are_those_that_a_list_is_read_by(kind: str, columns: list[str]) -> None:
    (version,) = definition(kind)["spec"]["versions"]
    assert [each["name"].upper() for each in version["additionalPrinterColumns"]] == columns
    status = schema(kind)["properties"]["status"]
    for column in version["additionalPrinterColumns"][:-1]:
        part = status
        for name in column["jsonPath"].removeprefix(".status.").split("."):
            part = part["properties"][name]
        assert part["type"] == column["type"]


def shown(kind: Kind, state: RunState) -> Shown:
    if kind is TRAINING_RUN:
        run = training_pb2.Run(run_id=UID, stage=1, trains="both", create_time=timestamp(1.0), end_time=timestamp(2.0))
        display = dict.fromkeys(("stage", "step", "policy", "reward"), "x")
        return Shown(state, "why", "DiskFull", {**fields_of(run, training_runs.STATUS_FIELDS), "display": display})
    summary = evaluation_pb2.EvalSummary(success=0.5, groups=[evaluation_pb2.EvalGroup(family="f")])
    version = common_pb2.PolicyVersion(lineage="a", number=3)
    errors = [evaluation_pb2.DatasetError(file="f", line=1, message="m")]
    job = evaluation_pb2.EvalJob(job_id=UID, summary=summary, executor_version=version, dataset_errors=errors)
    fields = fields_of(job, eval_jobs.STATUS_FIELDS)
    return Shown(state, "why", "", {**fields, "summary": fields_of(summary, eval_jobs.SUMMARY_FIELDS)})


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize("state", [None, *RunState])
@pytest.mark.parametrize("refused", ["", "InvalidSpec"])
def test_whatever_a_status_says_the_schema_takes(
    kind: Kind, desired: Desired, state: RunState | None, refused: str
) -> None:
    if kind is not TRAINING_RUN and state in (RunState.QUEUED, RunState.PAUSED):
        return
    request = ObjectRequest(UID, kind.name, "troupe", "x", 2, refused, "spec: why" if refused else "")
    seen = None if state is None else shown(kind, state)
    for held_up in ("", "run other trains these policies"):
        status = status_of(kind, desired, request, seen, held_up, {}, "2026-01-01T00:00:00Z")
        found = {**example(NAMES[kind is not TRAINING_RUN]), "status": status}
        assert problems(kind.plural, found) == []


def test_the_orchestrator_takes_its_setting_and_keeps_the_others(with_objects: Manifests) -> None:
    workload = next(each for each in with_objects.workloads if each.name == "orchestrator")
    before = next(each for each in render("local").workloads if each.name == "orchestrator")
    seen = with_objects.environment(workload, workload.pod["containers"][0])
    known = render("local").environment(before, before.pod["containers"][0])
    assert seen == {**known, "TROUPE_CUSTOM_RESOURCES": "true"}
    assert OrchestratorSettings.read(seen).custom_resources


def test_the_orchestrators_rights_grow_by_reading_objects_and_writing_their_status(with_objects: Manifests) -> None:
    assert with_objects.one("Role", "orchestrator") == render("local").one("Role", "orchestrator")
    rules = with_objects.one("Role", "orchestrator-custom-resources")["rules"]
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    objects = {kind.plural for kind in KINDS.values()}
    assert granted == {("troupe.dev", name, verb) for name in objects for verb in ("list", "watch")} | {
        ("troupe.dev", f"{name}/status", "patch") for name in objects
    }
    binding = with_objects.one("RoleBinding", "orchestrator-custom-resources")
    assert [each["name"] for each in binding["subjects"]] == ["orchestrator"]
    assert with_objects.of("ClusterRole") == []


def test_definitions_are_of_the_cluster_and_everything_else_of_the_namespace(with_objects: Manifests) -> None:
    made = with_objects.of("CustomResourceDefinition")
    assert sorted(each["metadata"]["name"] for each in made) == ["evaljobs.troupe.dev", "trainingruns.troupe.dev"]
    assert all("namespace" not in each["metadata"] for each in made)


def test_no_overlay_has_rights_to_objects_without_the_component() -> None:
    roles = render("local").of("Role")
    groups = {group for role in roles for rule in role["rules"] for group in rule["apiGroups"]}
    assert "troupe.dev" not in groups
