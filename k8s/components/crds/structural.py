"""A JSON schema of pydantic's as the structural schema that a CustomResourceDefinition takes. Pure.

Keys that the schema does not know are kept, not pruned: the orchestrator refuses them by name, which the API server would
not. Defaults are left out: they are the orchestrator's to fill in, and may change with it.
"""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]
_KEPT = ("description", "enum", "maximum", "minimum", "pattern", "minItems", "maxItems", "minLength", "maxLength")
UNTYPED: Schema = {"x-kubernetes-preserve-unknown-fields": True}
"""Of what no structural schema can say: the orchestrator looks at it."""


def structural(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], untyped: frozenset[str] = frozenset()
) -> Schema:
    """The structural schema.

    Args:
        definitions: what `$ref` refers to.
        untyped: `MODEL.FIELD` of fields that take more than their schema says.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return structural({**definitions[name], "x-name": name}, definitions, untyped)
    if "anyOf" in schema:
        return _any_of(schema["anyOf"], definitions, untyped)
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        kept["enum"] = [schema["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in schema:
            kept |= {bound: schema[exclusive], exclusive: True}
    if "type" not in schema:
        return {**kept, **UNTYPED}
    match schema["type"]:
        case "object":
            return {**kept, **_mapping(schema, definitions, untyped)}
        case "array":
            return {**kept, "type": "array", "items": structural(schema["items"], definitions, untyped)}
        case simple:
            return {**kept, "type": simple}


def _any_of(choices: list[Mapping[str, Any]], definitions: Mapping[str, Any], untyped: frozenset[str]) -> Schema:
    made = [structural(each, definitions, untyped) for each in choices if each.get("type") != "null"]
    nullable = {"nullable": True} if len(made) < len(choices) else {}
    if len(made) == 1:
        return {**made[0], **nullable}
    if {each.get("type") for each in made} == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True, **nullable}
    return {**UNTYPED, **nullable}


def _mapping(schema: Mapping[str, Any], definitions: Mapping[str, Any], untyped: frozenset[str]) -> Schema:
    if "properties" in schema:
        model = schema.get("x-name", schema.get("title", ""))
        properties = {
            name: UNTYPED if f"{model}.{name}" in untyped else structural(field, definitions, untyped)
            for name, field in schema["properties"].items()
        }
        required = {"required": list(schema["required"])} if schema.get("required") else {}
        return {"type": "object", **UNTYPED, "properties": properties, **required}
    values = schema.get("additionalProperties")
    if isinstance(values, Mapping):
        return {"type": "object", "additionalProperties": structural(values, definitions, untyped)}
    return {"type": "object", **UNTYPED}
