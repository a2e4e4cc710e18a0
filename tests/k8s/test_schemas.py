"""Every object against the strict schema of its kind, from Kubernetes itself or from the operator whose kind it is
(`vendor_schemas.py`).
"""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml
from rendered.overlays import RENDERED, Manifests, render

FOLDER: Final = Path(__file__).parent / "schemas"


@cache
def schema_of(api_version: str, kind: str) -> dict[str, Any]:
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part)
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    if "$ref" not in schema:
        return schema
    referred = schema["$ref"].partition("#")[2]
    return {**json.loads((FOLDER / "_definitions.json").read_text()), "$ref": f"#{referred}"}


def problems(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft4Validator(schema_of(document["apiVersion"], document["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_every_object_has_the_fields_of_its_kind_and_no_others(manifests: Manifests) -> None:
    found = {f"{each['kind']}/{each['metadata']['name']}": problems(each) for each in manifests.objects}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_misspelled_field_and_a_wrong_type_are_found(manifests: Manifests) -> None:
    pod = manifests.one("StatefulSet", "learner")["spec"]["template"]["spec"]
    wrong = {**manifests.one("StatefulSet", "learner")}
    wrong["spec"] = {**wrong["spec"], "replicas": "two", "template": {"spec": {**pod, "hostNetwrok": True}}}
    found = "\n".join(problems(wrong))
    assert "hostNetwrok" in found
    assert "'two' is not of type 'integer'" in found


def test_a_misspelled_field_of_an_operators_kind_is_found() -> None:
    issued = render("local+tls-cert-manager").one("Certificate", "learner")
    assert problems({**issued, "spec": {**issued["spec"], "dnsName": ["troupe"]}})
    scraped = render("cluster+monitoring-operator").one("PodMonitor", "troupe")
    assert problems({**scraped, "spec": {**scraped["spec"], "podMetricsEndpoints": [{"prot": "http"}]}})


@pytest.mark.parametrize("name", RENDERED)
def test_kubeconform_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    if shutil.which("kubeconform") is None:
        pytest.skip("kubeconform is not on the PATH (`make checkers`); the same schemas are checked above without it")
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(yaml.safe_dump_all(render(name).objects))
    location = f"{FOLDER}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    run = subprocess.run(
        ["kubeconform", "-strict", "-schema-location", location, str(rendered)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
