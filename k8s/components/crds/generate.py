"""Writes the CustomResourceDefinitions beside it: `make crds`.

Specs are the calls CreateRun and CreateEvalJob, statuses the messages Run and EvalJob, as `proto/` has them; the config of a
run is the orchestrator's RunConfig. What is said here besides is what an object has and a call has not: where a data set is,
what may change, phases, conditions, columns.

    generate.py            writes
    generate.py --check    says what is out of date, and exits with 1
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from contract import comments, fields_schema
from structural import Known, Schema, comments_of, structural
from troupe.v1 import evaluation_pb2, training_pb2
from troupe_orchestrator import rewards, run_config
from troupe_orchestrator.credit import config as credit_config
from troupe_orchestrator.credit import normalization
from troupe_orchestrator.custom_resources import eval_jobs, training_runs
from troupe_orchestrator.custom_resources.projection import PHASES
from troupe_orchestrator.custom_resources.resources import EVAL_JOB, GROUP, TRAINING_RUN, VERSION, Desired, Kind
from troupe_orchestrator.evaluation.requests import MAX_SAMPLES, MAX_SCRIPT_CHARACTERS, MAX_VOTES
from troupe_orchestrator.run_config import RunConfig

FOLDER: Final = Path(__file__).parent
_HEAD: Final = "# Made by `make crds` of proto/troupe/v1 and the orchestrator's RunConfig. Do not edit.\n"
_CONFIG_MODULES: Final = (run_config, rewards, credit_config, normalization)
"""Where the models of a config are."""
_STEERED: Final = "desiredState"
_MOST_INLINE: Final = 131_072
"""Characters of a data set in an object: what `kubectl apply` notes of it has to fit into an annotation of 256 KiB."""

_DATASET: Final[Schema] = {
    "description": "The problems: a file, or its lines.",
    "type": "object",
    "properties": {
        "path": {
            "description": "JSON lines, gzip allowed, at most 48 MiB, as the orchestrator sees the file. It is read once.",
            "type": "string",
            "pattern": "^/",
            "maxLength": 4096,
        },
        "inline": {
            "description": "The lines themselves.",
            "type": "string",
            "minLength": 1,
            "maxLength": _MOST_INLINE,
        },
    },
    "x-kubernetes-validations": [
        {"rule": "has(self.path) != has(self.inline)", "message": "needs one of path and inline"}
    ],
}
_DISPLAY: Final = {
    TRAINING_RUN: {
        "stage": "Number of the stage, and what it trains.",
        "step": "Steps committed, of all.",
        "policy": "Policy and version after the last committed step.",
        "reward": "Mean reward of the last committed step, of the role that it trained, the executor's where both.",
    },
    EVAL_JOB: {
        "accuracy": "Mean over problems of the mean over samples.",
        "ci95": "Its 95 % bootstrap interval over problems.",
    },
}
_COLUMNS: Final[Mapping[Kind, Mapping[str, tuple[str, str]]]] = {
    TRAINING_RUN: {
        "Stage": ("string", ".status.display.stage"),
        "Step": ("string", ".status.display.step"),
        "Policy": ("string", ".status.display.policy"),
        "Reward": ("string", ".status.display.reward"),
    },
    EVAL_JOB: {
        "Done": ("integer", ".status.itemsDone"),
        "Total": ("integer", ".status.itemsTotal"),
        "Accuracy": ("string", ".status.display.accuracy"),
        "CI95": ("string", ".status.display.ci95"),
    },
}
_SHORT_NAMES: Final = {TRAINING_RUN: ["trun"], EVAL_JOB: ["ejob"]}
_DESIRED: Final = {
    TRAINING_RUN: (
        "Running, Paused at the next step boundary, or Cancelled for good. A run that has paused or failed by itself goes "
        "on when this is set to Paused and then to Running."
    ),
    EVAL_JOB: "Running, or Cancelled for good; finished items stay.",
}


def training_run() -> Schema:
    """The definition of TrainingRun."""
    request = training_pb2.CreateRunRequest.DESCRIPTOR
    config = RunConfig.model_json_schema()
    # `until: plateau` is a word for the rule with its defaults.
    known = Known(config["$defs"], untyped=frozenset({"Stage.until"}), comments=comments_of(_CONFIG_MODULES))
    keys = structural(config, known)
    keys["description"] = (
        "The run's config, with the keys of `troupe train --config`; those that are unknown are refused."
    )
    properties = {
        "config": keys,
        **fields_schema(request, without=training_runs.NOT_IN_SPEC, more={"queue": {"default": True}}),
    }
    status = fields_schema(training_pb2.Run.DESCRIPTOR, only=training_runs.STATUS_FIELDS)
    return _definition(TRAINING_RUN, tuple(Desired), properties, ["config"], [], status)


def eval_job() -> Schema:
    """The definition of EvalJob."""
    more: dict[str, Schema] = {
        "samples": {"minimum": 1, "maximum": MAX_SAMPLES, "default": 1},
        "votes": {"minimum": 2, "maximum": MAX_VOTES},
        "mode": {"default": "System"},
        "script": {"minLength": 1, "maxLength": MAX_SCRIPT_CHARACTERS},
        "designsOf": {"minLength": 1},
        # Greedy is 0, which nobody is to get by leaving it out.
        "sampling": {"required": ["temperature"]},
        "sampling.temperature": {"minimum": 0},
    }
    request = evaluation_pb2.CreateEvalJobRequest.DESCRIPTOR
    properties = {"dataset": _DATASET, **fields_schema(request, without=eval_jobs.NOT_IN_SPEC, more=more)}
    rules = [
        {
            "rule": "(self.mode == 'Majority') == (has(self.votes) || has(self.equalTokens))",
            "message": "votes or equalTokens is needed by mode Majority, and read by no other",
        },
        {
            "rule": "!has(self.votes) || !has(self.equalTokens)",
            "message": "equalTokens says how many votes there are: leave out one of both",
        },
        {
            "rule": "(self.mode == 'FixedWorkflow') == has(self.script)",
            "message": "script is needed by mode FixedWorkflow, and read by no other",
        },
        {
            "rule": "(self.mode == 'StoredDesigns') == has(self.designsOf)",
            "message": "designsOf is needed by mode StoredDesigns, and read by no other",
        },
        {
            "rule": "self.mode == 'System' || !has(self.target) || !has(self.target.endpoint) || "
            "!has(self.target.endpoint.designer)",
            "message": "target.endpoint.designer is asked by mode System only",
        },
    ]
    message = evaluation_pb2.EvalJob.DESCRIPTOR
    status = fields_schema(message, only=eval_jobs.STATUS_FIELDS)
    summary = fields_schema(message.fields_by_name["summary"].message_type, only=eval_jobs.SUMMARY_FIELDS)
    status["summary"] = {
        "description": comments()["troupe.v1.EvalJob.summary"], "type": "object", "properties": summary
    }  # fmt: skip
    return _definition(EVAL_JOB, (Desired.RUNNING, Desired.CANCELLED), properties, ["dataset"], rules, status)


def _definition(
    kind: Kind,
    states: Iterable[Desired],
    properties: Mapping[str, Schema],
    required: list[str],
    rules: list[dict[str, str]],
    status: Mapping[str, Schema],
) -> Schema:
    steered = {"description": _DESIRED[kind], "type": "string", "enum": [state.value for state in states]}
    spec = {
        "description": "What is asked for. Only desiredState may change.",
        "type": "object",
        "required": required,
        "properties": {_STEERED: {**steered, "default": Desired.RUNNING.value}, **properties},
        "x-kubernetes-validations": [*rules, *_transitions(properties, required)],
    }
    schema = {
        "description": f"A request for {'a training run' if kind is TRAINING_RUN else 'an eval job'}.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": {
                "description": "What the orchestrator's store says of it.",
                "type": "object",
                "properties": _status(kind, status),
            },
        },
    }
    columns = {
        "Phase": ("string", ".status.phase"),
        **_COLUMNS[kind],
        "Age": ("date", ".metadata.creationTimestamp"),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": _SHORT_NAMES[kind],
                "categories": ["troupe"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path} for name, (type_, path) in columns.items()
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _transitions(properties: Mapping[str, Schema], required: list[str]) -> list[dict[str, str]]:
    """What may not change."""
    rules = [
        {
            "rule": f"oldSelf.{_STEERED} != 'Cancelled' || self.{_STEERED} == 'Cancelled'",
            "message": f"{_STEERED}: what is cancelled stays so; delete the object and apply it again",
        }
    ]
    for name, schema in properties.items():
        same = f"self.{name} == oldSelf.{name}"
        if name not in required and "default" not in schema:
            same = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
        rules.append({"rule": same, "message": f"{name} cannot change; delete the object and apply it again"})
    return rules


def _status(kind: Kind, fields: Mapping[str, Schema]) -> Schema:
    phases = [phase for phase in PHASES if kind is TRAINING_RUN or phase not in ("Queued", "Paused")]
    return {
        "observedGeneration": {
            "description": "Generation of the spec that was carried out last.", "type": "integer", "format": "int64"
        },
        "phase": {"type": "string", "enum": phases},
        "reason": {"description": "Why it is paused, failed or cancelled, with the remedy.", "type": "string"},
        "display": {
            "description": "What the columns of `kubectl get` show.",
            "type": "object",
            "properties": {
                name: {"description": text, "type": "string"} for name, text in _DISPLAY[kind].items()
            },
        },
        **fields,
        "conditions": _CONDITIONS,
    }  # fmt: skip


_CONDITIONS: Final[dict[str, Any]] = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    },
}


class _Plain(yaml.SafeDumper):
    """Without anchors, which nobody reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def rendered() -> dict[str, str]:
    """Name of each file to what it holds."""
    made = {TRAINING_RUN: training_run(), EVAL_JOB: eval_job()}
    return {
        f"{kind.plural}.yaml": _HEAD
        + yaml.dump(definition, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)
        for kind, definition in made.items()
    }


def main(arguments: list[str]) -> int:
    stale = {name: text for name, text in rendered().items() if _held(name) != text}
    if "--check" in arguments:
        for name in stale:
            print(f"{name} is out of date: commit what `make crds` makes", file=sys.stderr)
        return 1 if stale else 0
    for name, text in stale.items():
        (FOLDER / name).write_text(text)
        print(f"wrote {name}")
    return 0


def _held(name: str) -> str:
    file = FOLDER / name
    return file.read_text() if file.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
