"""Writes `schemas/`: strict JSON schemas of the kinds that the manifests use, from a Kubernetes release's `swagger.json`,
and from the CustomResourceDefinitions of operators: cert-manager 1.21 and the Prometheus operator 0.85.

    python tests/k8s/vendor_schemas.py $(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/api/openapi-spec/swagger.json
    cd $(go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)/deploy/crds
    python …/vendor_schemas.py cert-manager.io_{certificates,issuers}.yaml
    cd $(go list -m -f '{{.Dir}}' github.com/prometheus-operator/prometheus-operator)/example/prometheus-operator-crd
    python …/vendor_schemas.py monitoring.coreos.com_{podmonitors,prometheusrules}.yaml

In kubeconform's layout, so that it can be pointed at the folder: a file per kind; those of Kubernetes itself refer to
`_definitions.json`. Strict: a field that the definition does not have is an error.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent / "schemas"
KINDS: Final = (
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.StatefulSet",
    "io.k8s.api.batch.v1.Job",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
)
_KEEPS: Final = "x-kubernetes-preserve-unknown-fields"
_SCALARS: Final = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
}
_LEFT_OUT: Final = {"Issuer": ("acme",)}
"""Parts of a spec that no manifest uses, and that are longer than all the rest."""


def main(sources: list[Path]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for source in sources:
        if source.suffix == ".json":
            _write_kubernetes(source)
        else:
            _write_custom(yaml.safe_load(source.read_text()))


def _write_custom(definition: Any) -> None:
    """A file per version of a CustomResourceDefinition."""
    kind, group = definition["spec"]["names"]["kind"], definition["spec"]["group"].split(".")[0]
    for version in definition["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        for left_out in _LEFT_OUT.get(kind, ()):
            del schema["properties"]["spec"]["properties"][left_out]
        schema["properties"].pop("status", None)  # not ours to write
        _write(f"{kind.lower()}-{group}-{version['name']}.json", _strict(schema))


def _write_kubernetes(swagger: Path) -> None:
    definitions = json.loads(swagger.read_text())["definitions"]
    wanted, pending = {}, list(KINDS)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted[name] = _SCALARS.get(name) or _strict(definitions[name])
            pending += _references(wanted[name])
    _write("_definitions.json", {"definitions": dict(sorted(wanted.items()))})
    for kind in KINDS:
        for identity in definitions[kind]["x-kubernetes-group-version-kind"]:
            group = f"{identity['group'].split('.')[0]}-" if identity["group"] else ""
            name = f"{identity['kind'].lower()}-{group}{identity['version']}.json"
            _write(name, {"$ref": f"_definitions.json#/definitions/{kind}"})


def _strict(schema: Any) -> Any:
    """The schema without prose, closed to unknown fields."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: {name: _strict(field) for name, field in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key != "description" and not key.startswith("x-")
    }
    if "properties" in kept and "additionalProperties" not in kept and _KEEPS not in schema:
        kept["additionalProperties"] = False
    return kept


def _references(schema: Any) -> Iterator[str]:
    return iter(re.findall(r'"#/definitions/([^"]+)"', json.dumps(schema)))


def _write(name: str, schema: Any) -> None:
    (FOLDER / name).write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
