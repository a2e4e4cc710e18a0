"""Every leaf of a run's config, and of the serving config, is used or refused.

Each leaf is given another legal value. Either the config is refused, naming the leaf's cause, or something that a run does
is different: a request to the designer, the executor, the sandbox or the learner, a file, an event, a checkpoint. That the
value is stored does not count. A leaf that is new is found by itself, and fails here until something depends on it.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import itertools
import re
import types
import typing
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

import grpc
import pytest
import pytest_asyncio
import yaml
from orchestrated.models import right_unless_guessed
from orchestrated.sandbox import StandInSandbox
from orchestrated.world import World, backends, lines, math_task, world
from pydantic import BaseModel
from troupe.v1 import common_pb2, evaluation_pb2, policy_pb2, sandbox_pb2_grpc, solver_pb2, training_pb2
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.run_config import Conditions, RunConfig, ServingConfig
from troupe_orchestrator.stages import plan_step
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.training.assembly import assemble_batches
from troupe_orchestrator.training.conditions import ConditionWatch, StepMetrics
from troupe_orchestrator.training.plateau import has_plateaued
from troupe_orchestrator.training.requests import optimization, rollout_plan
from troupe_orchestrator.tree import Tree

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

CODE = {
    "id": "code",
    "task_type": "code",
    "question": "Print 42. (code)",
    "tests": {"stdin": [["1\n", "42\n"]]},
}
TASKS = [CODE, math_task("one"), math_task("two"), math_task("faulty"), math_task("beyond the limit")]
HELD = [math_task("held-one"), math_task("held-two")]
RUN: dict[str, Any] = {
    "name": "run",
    "seed": 3,
    "dataset": {"train": "train.jsonl", "limit": 4},
    "steps": 3,
    "stages": [
        {"train": "executor", "steps": 1, "learning_rate": 1e-3, "warmup_steps": 1, "designs": 2, "executions": 2}
        | {"until": {"window": 2, "min_improvement": 0.1, "min_steps": 1}},
        {"train": "designer", "steps": 1},
    ],
    "rollout": {"tasks_per_step": 4, "designs": 2, "executions": 2, "max_attempts": 2, "quarantine_after": 2},
    "sampling": {"designer": {"max_tokens": 64}, "executor": {"max_tokens": 48}},
    "budgets": {"agent_calls": 3, "tokens": 93, "turns": 2},
    "optimization": {"mini_batches": 2, "warmup_steps": 1},
    "checkpoint": {"every": 1, "keep": 1},
    "validation": {"dataset": "held.jsonl", "format": "troupe", "every": 2, "samples": 2, "limit": 1},
    "credit": {"options": {"group": "task", "std": "unbiased", "epsilon": 1e-6}},
}
SERVING: dict[str, Any] = {
    "sampling": {"designer": {"max_tokens": 64}, "executor": {"max_tokens": 48}},
    "budgets": {"agent_calls": 3, "tokens": 93, "turns": 2},
    "max_attempts": 2,
}
TIMED = re.compile(r"seconds|tokens_per_second|utili[sz]ation|busy|latency")


# ---- leaves and other values of them


def leaves(model: type[BaseModel], value: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Every leaf of a config: its path, the annotation of its field, its value."""
    parsed = model.model_validate(value)
    for name, spec in model.model_fields.items():
        yield from _leaves(getattr(parsed, name), spec.annotation, (*path, name))


Leaf = tuple[tuple[str | int, ...], Any, Any]


def _leaves(value: Any, annotation: Any, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(value, BaseModel):
        for name, spec in type(value).model_fields.items():
            yield from _leaves(getattr(value, name), spec.annotation, (*path, name))
    elif isinstance(value, tuple):
        for number, child in enumerate(value):
            yield from _leaves(child, type(child), (*path, number))
    elif isinstance(value, dict) and path == ("credit", "options"):
        options = ESTIMATORS.find("hierarchical").options
        for name, spec in options.model_fields.items():
            yield from _leaves(value.get(name, spec.default), spec.annotation, (*path, name))
    else:
        yield path, annotation, value


def others(annotation: Any, value: Any) -> Iterator[Any]:
    """Values that differ, the likeliest legal one first."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from others(arguments[0], value)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from others(argument, value)
    elif origin is Literal:
        yield from (each for each in arguments if each != value)
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        yield from (each.value for each in annotation if each != value)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield {}
    elif annotation is bool:
        yield not value
    elif annotation is int:
        yield from ([value + 1, value - 1, value + 2] if isinstance(value, int) else [1, 2])
    elif annotation is float:
        yield from ([value / 2, value * 2, value + 0.5] if isinstance(value, int | float) and value else [0.5, 2.0])
    elif annotation is str:
        yield f"{value or ''}x"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield {**value, "unknown": 0.5}
    elif isinstance(annotation, type) and issubclass(annotation, Path):
        yield f"{value}.other"


def changed(config: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The config with one leaf replaced."""
    result = copy.deepcopy(config)
    place: Any = result
    for part in path[:-1]:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[path[-1]] = value
    return result


def alternatives(model: type[BaseModel], config: dict[str, Any], leaf: Leaf) -> list[dict[str, Any]]:
    """The config with other legal values of the leaf; none where the model refuses every other value beside the rest."""
    path, annotation, value = leaf
    candidates = list(others(annotation, value))
    assert candidates, f"no other value is known for {path} of type {annotation}"
    found = []
    for candidate in candidates:
        mutated = changed(config, path, candidate)
        with contextlib.suppress(ValueError):
            model.model_validate(mutated)
            found.append(mutated)
    return found


def name_of(leaf: Leaf) -> str:
    return ".".join(map(str, leaf[0]))


# ---- what a run does


@contextlib.asynccontextmanager
async def sandbox_stand_in() -> AsyncIterator[tuple[StandInSandbox, str]]:
    sandbox = StandInSandbox()

    def register(server: grpc.aio.Server) -> None:
        sandbox_pb2_grpc.add_SandboxServicer_to_server(sandbox, server)

    running = await start(ServiceSettings(), register, ["troupe.v1.Sandbox"])
    yield sandbox, running.target
    await running.drain(0)


def reply(request: policy_pb2.GenerateRequest) -> str:
    """Right or wrong by the script; a program for the task of code."""
    if any("(code)" in message.content for message in request.messages):
        return "<solution>\n42\n</solution>"
    return right_unless_guessed(request)


@dataclass
class Stage:
    """One orchestrator between stand-ins, on which one config after another is tried."""

    world: World
    sandbox: StandInSandbox
    runs: Iterator[int] = field(default_factory=itertools.count)
    trees: list[Tree] = field(default_factory=list)
    """Of a step of the undisturbed run."""

    def begin_again(self) -> None:
        parts = self.world.backends
        parts.designer.begin_again()
        parts.policy.requests.clear()
        parts.policy.probe_bounds.clear()
        parts.learner.optimizations.clear()
        parts.learner.batches.clear()
        self.sandbox.begin_again()


@contextlib.asynccontextmanager
async def stage(folder: Path, **settings: object) -> AsyncIterator[Stage]:
    folder.mkdir(exist_ok=True)
    for name, rows in (("train.jsonl", TASKS), ("held.jsonl", HELD)):
        (folder / name).write_text(lines(*rows))
    async with backends() as parts, sandbox_stand_in() as (sandbox, target):
        parts.policy.reply = reply
        # Its faults are ours: it is dropped, and quarantined.
        parts.designer.scripts[str(math_task("faulty")["question"])] = []
        async with world(folder, parts, target, learner=True, **settings) as opened:
            yield Stage(opened, sandbox)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def run_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("config-leaves")) as opened:
        yield opened


def said(messages: Iterable[object]) -> list[str]:
    """What messages say, without names that belong to the run, in no order."""
    return sorted(_NAMES.sub("…", str(message)) for message in messages)


_NAMES = re.compile(r"\b[0-9a-f]{20}\b|run-\d+|start(~\d+)?\b")


def located(config: dict[str, Any], folder: Path) -> str:
    """The config with its files where they are."""
    result = copy.deepcopy(config)
    result["dataset"]["train"] = str(folder / str(config["dataset"]["train"]))
    result["validation"]["dataset"] = str(folder / str(config["validation"]["dataset"]))
    return yaml.safe_dump(result)


async def behaviour(stage: Stage, config: dict[str, Any]) -> dict[str, object]:
    """All that a run of this config does, or how it is refused."""
    stage.begin_again()
    opened, parts = stage.world, stage.world.backends
    run_id = f"run-{next(stage.runs)}"
    try:
        await opened.training.CreateRun(
            training_pb2.CreateRunRequest(run_id=run_id, config=located(config, opened.folder))
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return {"refused": error.details()}
        raise
    events = await opened.run_events(run_id)
    run = await opened.get_run(run_id)
    return {
        "designer": said(parts.designer.requests),
        "executor": said(parts.policy.requests),
        "scripts": said(stage.sandbox.starts),
        "tests": said(stage.sandbox.tests),
        "replies": said(stage.sandbox.replies),
        "optimizations": [str(each) for each in parts.learner.optimizations],
        "batches": said(parts.learner.batches.values()),
        "probe bounds": set(parts.policy.probe_bounds),
        "saved": sorted(Path(uri).name for uri in parts.learner.checkpoints if f"/{run_id}/" in uri),
        "checkpoints": [saved.step for saved in run.checkpoints],
        "trees": len(list(Path(run.folder).rglob("trees*.parquet"))),
        "batch files": len(list(Path(run.folder).rglob("batch*.parquet"))),
        "ended": (run.state, run.reason, run.committed_steps),
        "events": [_event(event) for event in events],
    }


def _event(event: training_pb2.RunEvent) -> object:
    if event.HasField("step_committed"):
        told = event.step_committed
        metrics = {name: value for name, value in told.metrics.items() if not TIMED.search(name)}
        return event.step, told.stage, told.trains, sorted(metrics.items())
    if event.HasField("eval_finished"):
        return event.step, "validated"
    return event.step, str(event.condition.reason), event.state_changed.state


def pauses(config: dict[str, Any]) -> list[list[str]]:
    """Which conditions pause over a history in which all of them come and go."""
    watch = ConditionWatch(Conditions.model_validate(config.get("conditions", {})))
    bad = {
        "learner_entropy": 0.0008,
        "reward_executor": 0.2,
        "valid_scripts": 0.015,
        "zero_variance": 0.985,
        "mismatch_kl": 0.15,
        "learner_mismatch_kl": 0.15,
        "probe_mean_error": 1.0,
    }
    milder = {"learner_entropy": 0.0015, "valid_scripts": 0.03, "zero_variance": 0.7, "learner_mismatch_kl": 0.07}
    good = {"reward_executor": 1.0, "learner_entropy": 0.5, "valid_scripts": 0.9, "learner_mismatch_kl": 0.0}
    history = [*[good] * 6, *[bad] * 22, {"non_finite/learner_loss": 1.0}, *[good] * 6, *[milder | bad] * 6]
    history += [*[good | {"reward_executor": 1.0}] * 6, *[milder | {"reward_executor": 0.65}] * 6]
    return [
        sorted(f"{each.reason} {each.metric}" for each in watch.observe(StepMetrics(number, "executor", metrics)))
        for number, metrics in enumerate(history, start=1)
    ]


def plateaus(config: dict[str, Any]) -> list[list[int]]:
    """After which validations of a history each stage would end."""
    history = [0.1, 0.3, 0.35, 0.42, 0.5, 0.5, 0.5, 0.5]
    rules = [stage.until for stage in RunConfig.model_validate(config).stages]
    return [
        [count for count in range(1, 9) if rule is not None and has_plateaued(rule, count, history[:count])]
        for rule in rules
    ]


RUN_LEAVES = list(leaves(RunConfig, RUN))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def undisturbed(run_stage: Stage) -> dict[str, object]:
    """What the config does unchanged: twice the same."""
    first, second = await behaviour(run_stage, RUN), await behaviour(run_stage, RUN)
    file = next((run_stage.world.folder / "data" / "runs").rglob("steps/000001/trees*.parquet"))
    run_stage.trees += read_trees(file)
    assert "refused" not in first, first
    assert first["ended"] == (training_pb2.RUN_STATE_SUCCEEDED, "", 3)
    assert [name for name in first if first[name] != second[name]] == []
    return first


@pytest.mark.parametrize("leaf", RUN_LEAVES, ids=name_of)
async def test_every_leaf_of_a_runs_config_changes_what_it_does_or_is_refused(
    leaf: Leaf, run_stage: Stage, undisturbed: dict[str, object]
) -> None:
    for config in (found := alternatives(RunConfig, RUN, leaf)):
        if await differs(run_stage, leaf, config, undisturbed):
            return
    assert not found, f"no other value of {name_of(leaf)} changes anything"


async def differs(stage: Stage, leaf: Leaf, config: dict[str, Any], undisturbed: dict[str, object]) -> bool:
    """Whether a config with another value of a leaf does anything else than RUN."""
    if leaf[0][0] == "conditions":
        return pauses(config) != pauses(RUN)
    if "until" in leaf[0]:
        return plateaus(config) != plateaus(RUN)
    if leaf[0] == ("name",):
        return await chosen_id(stage, config) != await chosen_id(stage, RUN)
    # In what is asked of services for given trees, or else in what a whole run does.
    return asked(config, stage.trees) != asked(RUN, stage.trees) or await behaviour(stage, config) != undisturbed


def asked(config: dict[str, Any], trees: Sequence[Tree]) -> list[object]:
    """What the steps of a run ask of designer, executor and learner, were their trees these."""
    parsed = RunConfig.model_validate(config)
    found: list[object] = []
    for step in range(1, parsed.steps + 1):
        plan = plan_step(parsed, step)
        rollout = rollout_plan("run", parsed, plan, {"designer": "a:0", "executor": "a:0"})
        found += [plan.designs, plan.executions, str(rollout.designer_sampling), str(rollout.executor_sampling)]
        found.append(optimization(parsed, plan, plan.resets_optimizer))
        policies = {"designer": "p", "executor": "p"}
        found += [
            str(each.to_message())
            for batch in assemble_batches(trees, plan, parsed, policies)
            for each in batch.sequences
        ]
    return found


async def chosen_id(stage: Stage, config: dict[str, Any]) -> str:
    """The id of a run that is given none, without its random part."""
    training = stage.world.training
    request = training_pb2.CreateRunRequest(config=located(config, stage.world.folder))
    run = await training.CreateRun(request)
    await training.CancelRun(training_pb2.CancelRunRequest(run_id=run.run_id))
    return run.run_id.rpartition("-")[0]


async def served(folder: Path, serving: dict[str, Any]) -> dict[str, object]:
    """All that an eval job and a question do with a serving config."""
    folder.mkdir()
    (folder / "own.yaml").write_text(yaml.safe_dump(serving))
    async with stage(folder, serving=folder / "own.yaml") as opened:
        parts, calls = opened.world.backends, opened.world
        job = await calls.evaluate(*TASKS, samples=2, job_id="job", sampling=common_pb2.Sampling(seed=1, temperature=1))
        assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason
        traces = [
            await calls.training.GetExecution(training_pb2.GetExecutionRequest(execution_id=item.execution_id))
            for item in await calls.items("job")
            if item.execution_id
        ]
        jobs = (
            said(parts.designer.requests),
            said(parts.policy.requests),
            said(opened.sandbox.starts),
            said(opened.sandbox.tests),
            said(opened.sandbox.replies),
            said(list(trace.reward_terms) for trace in traces),
        )
        opened.begin_again()
        async for _ in calls.solver.Solve(solver_pb2.SolveRequest(question="6 * 7?")):
            pass
        return {"jobs": jobs, "solved": [request.sampling.temperature for request in parts.designer.requests]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("served")
    first, second = await served(folder / "one", SERVING), await served(folder / "two", SERVING)
    assert first == second
    return first


@pytest.mark.parametrize("leaf", list(leaves(ServingConfig, SERVING)), ids=name_of)
async def test_every_leaf_of_the_serving_config_changes_what_jobs_and_questions_do(
    leaf: Leaf, served_undisturbed: dict[str, object], tmp_path: Path
) -> None:
    for number, serving in enumerate(found := alternatives(ServingConfig, SERVING, leaf)):
        if await served(tmp_path / f"served-{number}", serving) != served_undisturbed:
            return
    assert not found, f"no other value of {name_of(leaf)} changes anything"
