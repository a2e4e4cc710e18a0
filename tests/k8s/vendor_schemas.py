"""Writes `schemas/`: strict JSON schemas of the kinds that the manifests use, from a Kubernetes release's `swagger.json`.

    python tests/k8s/vendor_schemas.py $(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/api/openapi-spec/swagger.json

In kubeconform's layout, so that it can be pointed at the folder: a file per kind, which refers to `_definitions.json`.
Strict: a field that the definition does not have is an error.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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
_SCALARS: Final = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
}


def main(swagger: Path) -> None:
    definitions = json.loads(swagger.read_text())["definitions"]
    wanted, pending = {}, list(KINDS)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted[name] = _SCALARS.get(name) or _strict(definitions[name])
            pending += _references(wanted[name])
    FOLDER.mkdir(exist_ok=True)
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
    if "properties" in kept and "additionalProperties" not in kept:
        kept["additionalProperties"] = False
    return kept


def _references(schema: Any) -> Iterator[str]:
    return iter(re.findall(r'"#/definitions/([^"]+)"', json.dumps(schema)))


def _write(name: str, schema: Any) -> None:
    (FOLDER / name).write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
