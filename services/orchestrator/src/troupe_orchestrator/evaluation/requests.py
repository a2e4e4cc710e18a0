"""What a CreateEvalJob call may ask for. Pure."""

import re
from collections.abc import Iterator

from troupe.v1 import common_pb2, evaluation_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.datasets.formats import FORMATS
from troupe_orchestrator.datasets.loading import DatasetError, LoadedDataset, load
from troupe_orchestrator.evaluation.fixed_designs import asks_designer
from troupe_orchestrator.run_config import Budgets, ServingConfig

MAX_DATASET_BYTES = 48 * 1024 * 1024
MAX_SAMPLES = 256
MAX_VOTES = 256
MAX_SCRIPT_CHARACTERS = 65_536
_JOB_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


def check_request(request: evaluation_pb2.CreateEvalJobRequest, budgets: Budgets) -> None:
    """Refuse what cannot be run.

    Raises:
        InvalidArgument: naming each bad field.
    """
    violations = []
    if request.format and request.format not in FORMATS.names():
        violations.append(("format", f"{request.format!r} is none of {FORMATS.known()}"))
    if request.job_id and not _JOB_ID.fullmatch(request.job_id):
        violations.append(("job_id", f"{request.job_id!r} must match {_JOB_ID.pattern}"))
    if not request.dataset:
        violations.append(("dataset", "is empty: send the file's bytes"))
    if len(request.dataset) > MAX_DATASET_BYTES:
        violations.append(("dataset", f"has {len(request.dataset)} bytes, the maximum is {MAX_DATASET_BYTES}"))
    if not 1 <= request.samples <= MAX_SAMPLES:
        violations.append(("samples", f"is {request.samples}, must be 1 to {MAX_SAMPLES}"))
    if request.mode not in evaluation_pb2.EvalMode.values():
        violations.append(("mode", f"is {request.mode}, must be one of {evaluation_pb2.EvalMode.keys()}"))
    violations += _fixed_violations(request, budgets)
    if violations:
        raise InvalidArgument.every(violations)


def _fixed_violations(request: evaluation_pb2.CreateEvalJobRequest, budgets: Budgets) -> Iterator[tuple[str, str]]:
    """What a mode asks for and has not, or has and nobody reads."""
    mode = evaluation_pb2.EvalMode.Name(request.mode) if request.mode in evaluation_pb2.EvalMode.values() else ""
    if not asks_designer(request) and request.target.endpoint.designer:
        yield "target.endpoint.designer", f"is asked by nobody: {mode} has no designer"
    if request.mode == evaluation_pb2.EVAL_MODE_MAJORITY:
        most = most_votes(budgets)
        if request.HasField("equal_tokens"):
            if request.votes:
                yield "votes", "is given beside equal_tokens, which says how many: leave one out"
            for name in ("system_job", "agent_job"):
                if not getattr(request.equal_tokens, name):
                    yield f"equal_tokens.{name}", "is empty: name a job"
        elif not 2 <= request.votes <= most:
            yield "votes", f"is {request.votes}, must be 2 to {most}, the agent calls that an execution may make"
    elif request.HasField("equal_tokens"):
        yield "equal_tokens", f"is read by EVAL_MODE_MAJORITY only, the mode is {mode}"
    elif request.votes:
        yield "votes", f"is read by EVAL_MODE_MAJORITY only, the mode is {mode}"
    if request.mode == evaluation_pb2.EVAL_MODE_FIXED_WORKFLOW:
        if not 1 <= len(request.script) <= MAX_SCRIPT_CHARACTERS:
            yield "script", f"has {len(request.script)} characters, must have 1 to {MAX_SCRIPT_CHARACTERS}"
    elif request.script:
        yield "script", f"is read by EVAL_MODE_FIXED_WORKFLOW only, the mode is {mode}"
    if (request.mode == evaluation_pb2.EVAL_MODE_STORED_DESIGNS) != bool(request.designs_of):
        yield "designs_of", f"is needed by EVAL_MODE_STORED_DESIGNS and read by no other, the mode is {mode}"


def most_votes(budgets: Budgets) -> int:
    """Votes that an item may have."""
    return min(MAX_VOTES, budgets.agent_calls)


def load_dataset(request: evaluation_pb2.CreateEvalJobRequest, content: bytes) -> LoadedDataset:
    """The problems that a job runs: the first `limit` of the file.

    Raises:
        InvalidArgument: the file cannot be used, or has no readable line.
    """
    try:
        dataset = load(request.dataset_name, content, request.format or None)
    except DatasetError as error:
        raise InvalidArgument("dataset", str(error)) from error
    if not dataset.tasks:
        first = dataset.errors[0] if dataset.errors else None
        detail = f"; {first.file}:{first.line}: {first.message}" if first else ""
        raise InvalidArgument("dataset", f"{request.dataset_name or 'the data set'} has no readable line{detail}")
    return LoadedDataset(dataset.tasks[: request.limit or None], dataset.errors, dataset.format)


def sampling_of(
    request: evaluation_pb2.CreateEvalJobRequest, serving: ServingConfig, max_tokens: int
) -> common_pb2.Sampling:
    """How a role samples: as the request says, else as the orchestrator is configured.

    Args:
        max_tokens: of one turn of the role, where the request does not say.
    """
    chosen = common_pb2.Sampling(temperature=serving.temperature, max_tokens=max_tokens)
    if request.HasField("sampling"):
        chosen.CopyFrom(request.sampling)
        chosen.max_tokens = chosen.max_tokens or max_tokens
    return chosen
