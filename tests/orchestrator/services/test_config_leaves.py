"""Every leaf of a run's config is used or refused.

Each leaf is given another legal value. Either the config is refused, naming the leaf, or something that a run does
is different: a request to the designer, the executor, the sandbox or the learner, a file, an event, a checkpoint. That the
value is stored does not count. A leaf that is new is found by itself, and fails here until something depends on it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
import yaml
from configured.leaves import Leaf, alternatives, changed, is_named, leaves, name_of, refusals
from configured.stage import Stage, behaviour, located, stage
from troupe.v1 import common_pb2, sandbox_pb2, training_pb2
from troupe_contracts.errors import InvalidArgument
from troupe_orchestrator.run_config import Conditions, RunConfig
from troupe_orchestrator.stages import plan_step
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.training.assembly import assemble_batches
from troupe_orchestrator.training.conditions import ConditionWatch, StepMetrics
from troupe_orchestrator.training.inputs import parse
from troupe_orchestrator.training.plan import PolicyDescription, plan_message
from troupe_orchestrator.training.plateau import has_plateaued
from troupe_orchestrator.training.requests import optimization, rollout_plan
from troupe_orchestrator.tree import Tree

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


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def run_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("config-leaves")) as opened:
        yield opened


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


POLICY = PolicyDescription("p", ("designer", "executor"), 1000, 2000, 64, 512, 128, 2)
RUN_LEAVES = list(leaves(RunConfig, RUN))
# Leaves that have no other value in RUN, and a config in which they have.
ELSEWHERE: dict[str, dict[str, Any]] = {
    "stages.0.until.min_steps": changed(
        changed(RUN, ("stages", 0, "steps"), 3), ("stages", 0, "until"), {"window": 1, "min_improvement": 0.9}
    ),
    "credit.estimator": changed(RUN, ("credit", "options"), {}),
    **{
        f"credit.normalization.{role}.constant": changed(
            RUN, ("credit", "normalization", role), {"rule": "constant", "constant": 1.0}
        )
        for role in ("designer", "executor")
    },
}
# Leaves of which the model refuses every other value, and why that is right.
REFUSED = {
    "repeat": "without it the stages must cover all steps",
    "rewards.designer.terms": "names of plug-ins, of which none is installed; tests/plugins has one",
    "rewards.executor.terms": "names of plug-ins, of which none is installed; tests/plugins has one",
}


def around(leaf: Leaf) -> dict[str, Any]:
    """The config in which a leaf is changed."""
    return ELSEWHERE.get(name_of(leaf), RUN)


def test_every_leaf_has_another_legal_value_or_is_listed_and_refused_by_name() -> None:
    untried = [leaf for leaf in RUN_LEAVES if not alternatives(RunConfig, around(leaf), leaf)]
    assert {name_of(leaf) for leaf in untried} == set(REFUSED)
    unnamed = [text for leaf in untried for text in refusals(RunConfig, RUN, leaf) if not is_named(leaf, text)]
    assert unnamed == []
    assert {name_of(leaf) for leaf in RUN_LEAVES} >= set(ELSEWHERE)


@pytest.mark.parametrize("leaf", RUN_LEAVES, ids=name_of)
def test_a_number_that_nothing_can_carry_is_refused_by_its_name(leaf: Leaf) -> None:
    for value in (2**31, 2**32, 2**63, 2**64, 10**30, -1, math.inf, -math.inf, math.nan):
        text = yaml.safe_dump(changed(around(leaf), leaf[0], value))
        refusal = ""
        try:
            config = parse(text)
        except InvalidArgument as error:
            refusal = str(error)
        if refusal:
            assert is_named(leaf, refusal), refusal
            continue
        assert math.isfinite(value)
        plan = plan_step(config, 1)
        assert plan_message(config, 10**6, [POLICY]).ByteSize()
        assert optimization(config, plan, False)
        rollout = rollout_plan("run", config, plan, {"designer": "a:1", "executor": "a:1"})
        assert common_pb2.Sampling(seed=rollout.seed).ByteSize() >= 0
        assert sandbox_pb2.Limits(memory_bytes=rollout.budgets.memory_bytes).ByteSize() >= 0
        assert training_pb2.RunProvenance(seed=config.seed).ByteSize() >= 0


def test_a_config_that_is_too_long_or_holds_no_text_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="300000 characters, the maximum is 262144"):
        parse(" " * 300_000)
    with pytest.raises(InvalidArgument, match="half a surrogate pair"):
        parse('dataset: {train: "a\\udc80"}')
    with pytest.raises(InvalidArgument, match="not YAML: Exceeds the limit"):
        parse("seed: 0x" + "f" * 5000)
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        parse("a0: &a0 []\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(1_200)))


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


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.long
@pytest.mark.parametrize("leaf", [leaf for leaf in RUN_LEAVES if name_of(leaf) not in REFUSED], ids=name_of)
async def test_every_leaf_of_a_runs_config_changes_what_it_does_or_is_refused(
    leaf: Leaf, run_stage: Stage, undisturbed: dict[str, object]
) -> None:
    for config in alternatives(RunConfig, around(leaf), leaf):
        if await differs(run_stage, leaf, config, undisturbed):
            return
    pytest.fail(f"no other value of {name_of(leaf)} changes anything")


async def differs(stage: Stage, leaf: Leaf, config: dict[str, Any], undisturbed: dict[str, object]) -> bool:
    """Whether a config with another value of a leaf does anything else than without it, or is refused for that leaf."""
    before = around(leaf)
    if leaf[0][0] == "conditions":
        return pauses(config) != pauses(before)
    if "until" in leaf[0]:
        return plateaus(config) != plateaus(before)
    if leaf[0] == ("name",):
        return await chosen_id(stage, config) != await chosen_id(stage, before)
    # In what is asked of services for given trees, or else in what a whole run does.
    if asked(config, stage.trees) != asked(before, stage.trees):
        return True
    done = await behaviour(stage, config)
    if "refused" in done:
        assert is_named(leaf, str(done["refused"])), done["refused"]
        return True
    return done != (undisturbed if before is RUN else await behaviour(stage, before))


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
