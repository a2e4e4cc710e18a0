"""Whom `troupe eval --of` names: the text of the option as a message. Pure."""

import re

from troupe.v1 import evaluation_pb2

FORMS = (
    "current, checkpoint:RUN@STEP, checkpoint:RUN@best, checkpoint:RUN@start, "
    "weights:POLICY=FOLDER[,POLICY=FOLDER], endpoint:HOST:PORT or endpoint:executor=HOST:PORT,designer=HOST:PORT"
)
_RUN = re.compile(r"(?P<run>[^@]+)@(?P<step>best|start|[0-9]{1,19})")


def parse_target(text: str) -> evaluation_pb2.EvalTarget:
    """The target that a text names.

    Raises:
        ValueError: it has none of the forms.
    """
    kind, _, rest = text.partition(":")
    match kind:
        case "current" if not rest:
            return evaluation_pb2.EvalTarget(current=evaluation_pb2.CurrentTarget())
        case "checkpoint" if (found := _RUN.fullmatch(rest)) is not None:
            checkpoint = evaluation_pb2.CheckpointTarget(run_id=found["run"])
            if found["step"].isdecimal():
                checkpoint.step = int(found["step"])
            else:
                setattr(checkpoint, found["step"], True)
            return evaluation_pb2.EvalTarget(checkpoint=checkpoint)
        case "weights" if (uris := _pairs(rest)) is not None:
            return evaluation_pb2.EvalTarget(checkpoint=evaluation_pb2.CheckpointTarget(uris=uris))
        case "endpoint" if rest and "=" not in rest:
            return evaluation_pb2.EvalTarget(endpoint=evaluation_pb2.EndpointTarget(executor=rest))
        case "endpoint" if (roles := _pairs(rest)) is not None and roles.keys() <= {"executor", "designer"}:
            return evaluation_pb2.EvalTarget(endpoint=evaluation_pb2.EndpointTarget(**roles))
    raise ValueError(f"{text!r} names nobody to evaluate: write {FORMS}")


def describe_target(target: evaluation_pb2.EvalTarget) -> str:
    """What `parse_target` reads."""
    match target.WhichOneof("target"):
        case "checkpoint" if target.checkpoint.run_id:
            return f"checkpoint:{target.checkpoint.run_id}@{target.checkpoint.step}"
        case "checkpoint":
            return "weights:" + ",".join(f"{policy}={uri}" for policy, uri in sorted(target.checkpoint.uris.items()))
        case "endpoint":
            roles = {"executor": target.endpoint.executor, "designer": target.endpoint.designer}
            return "endpoint:" + ",".join(f"{role}={address}" for role, address in roles.items() if address)
        case _:
            return "current"


def _pairs(text: str) -> dict[str, str] | None:
    """`a=b,c=d` as a mapping; None for anything else."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and value for key, _, value in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        return None
    return {key: value for key, _, value in pairs}
