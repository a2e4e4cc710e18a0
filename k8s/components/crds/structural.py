"""A JSON schema of pydantic's as the structural schema that a CustomResourceDefinition takes. Pure.

Keys that the schema does not know are kept, not pruned: the orchestrator refuses them by name, which the API server would
not. Defaults are left out: they are the orchestrator's to fill in, and may change with it.
"""

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import Any

Schema = dict[str, Any]
_KEPT = ("description", "enum", "maximum", "minimum", "pattern", "minItems", "maxItems", "minLength", "maxLength")
UNTYPED: Schema = {"x-kubernetes-preserve-unknown-fields": True}
"""Of what no structural schema can say: the orchestrator looks at it."""
_MOST_EXACT = 2**53
"""Bounds are doubles to an API server, and one that is rounded to what int64 does not hold has it refuse every value."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the models beside the schema. Fields are MODEL.FIELD."""

    definitions: Mapping[str, Any]
    """What `$ref` refers to."""
    untyped: frozenset[str] = frozenset()
    """Fields that take more than their schema says."""
    comments: Mapping[str, str] = field(default_factory=dict)
    """What stands below a field in the source."""


def comments_of(modules: Iterable[ModuleType]) -> dict[str, str]:
    """MODEL.FIELD of all classes of modules to the text below the field."""
    return {
        f"{model.name}.{named.target.id}": " ".join(text.value.value.split())
        for module in modules
        for model in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(model, ast.ClassDef)
        for named, text in pairwise(model.body)
        if isinstance(named, ast.AnnAssign) and isinstance(named.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def structural(schema: Mapping[str, Any], known: Known) -> Schema:
    """The structural schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return structural({**known.definitions[name], "x-name": name}, known)
    if "anyOf" in schema:
        return _any_of(schema["anyOf"], known)
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("maximum", 0) > _MOST_EXACT:
        del kept["maximum"]
    if "const" in schema:
        kept["enum"] = [schema["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in schema:
            kept |= {bound: schema[exclusive], exclusive: True}
    if "type" not in schema:
        return {**kept, **UNTYPED}
    match schema["type"]:
        case "object":
            return {**kept, **_mapping(schema, known)}
        case "array":
            return {**kept, "type": "array", "items": structural(schema["items"], known)}
        case simple:
            return {**kept, "type": simple}


def _any_of(choices: list[Mapping[str, Any]], known: Known) -> Schema:
    made = [structural(each, known) for each in choices if each.get("type") != "null"]
    nullable = {"nullable": True} if len(made) < len(choices) else {}
    if len(made) == 1:
        return {**made[0], **nullable}
    if {each.get("type") for each in made} == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True, **nullable}
    return {**UNTYPED, **nullable}


def _mapping(schema: Mapping[str, Any], known: Known) -> Schema:
    if "properties" in schema:
        model = schema.get("x-name", schema.get("title", ""))
        properties = {name: _field(f"{model}.{name}", field, known) for name, field in schema["properties"].items()}
        required = {"required": list(schema["required"])} if schema.get("required") else {}
        return {"type": "object", **UNTYPED, "properties": properties, **required}
    values = schema.get("additionalProperties")
    if isinstance(values, Mapping):
        return {"type": "object", "additionalProperties": structural(values, known)}
    return {"type": "object", **UNTYPED}


def _field(name: str, schema: Mapping[str, Any], known: Known) -> Schema:
    made = UNTYPED if name in known.untyped else structural(schema, known)
    return {**made, **({"description": known.comments[name]} if name in known.comments else {})}
