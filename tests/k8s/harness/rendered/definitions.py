"""The CustomResourceDefinitions, as JSON schemas: what a real API server checks of an object, but for its CEL rules."""

from functools import cache
from typing import Any, Final

import jsonschema
import yaml

from rendered.overlays import K8S

FOLDER: Final = K8S / "components" / "crds"
_KEPT: Final = "x-kubernetes-preserve-unknown-fields"


@cache
def definition(plural: str) -> dict[str, Any]:
    """One of them."""
    return dict(yaml.safe_load((FOLDER / f"{plural}.yaml").read_text()))


def schema(plural: str) -> dict[str, Any]:
    """Of its one version."""
    (version,) = definition(plural)["spec"]["versions"]
    return dict(version["schema"]["openAPIV3Schema"])


def problems(plural: str, found: dict[str, Any]) -> list[str]:
    """What is wrong with an object; a field that would be pruned is."""
    validator = jsonschema.Draft4Validator(_strict(schema(plural)))
    whole = {**found, "metadata": {}}
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(whole)]


def _strict(part: Any) -> Any:
    if isinstance(part, list):
        return [_strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    kept = {
        key: {name: _strict(field) for name, field in value.items()} if key == "properties" else _strict(value)
        for key, value in part.items()
    }
    if part.get("nullable") and "type" in part:
        kept["type"] = [part["type"], "null"]
    if "properties" in part and _KEPT not in part:
        kept["additionalProperties"] = False
    return kept
