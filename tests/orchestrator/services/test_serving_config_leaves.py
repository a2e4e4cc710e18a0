"""Every leaf of the serving config is used or refused: given another legal value, it changes what jobs and questions do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from configured.leaves import Leaf, alternatives, is_named, leaves, name_of, refusals
from configured.stage import TASKS, said, stage
from troupe.v1 import common_pb2, evaluation_pb2, solver_pb2, training_pb2
from troupe_orchestrator.run_config import ServingConfig

SERVING: dict[str, Any] = {
    "sampling": {"designer": {"max_tokens": 64}, "executor": {"max_tokens": 48}},
    "budgets": {"agent_calls": 3, "tokens": 93, "turns": 2},
    "max_attempts": 2,
}


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


SERVING_LEAVES = list(leaves(ServingConfig, SERVING))
# Leaves of which the model refuses every other value, and why that is right.
REFUSED = {
    "rewards.designer.terms": "names of plug-ins, of which none is installed; tests/plugins has one",
    "rewards.executor.terms": "names of plug-ins, of which none is installed; tests/plugins has one",
}


def test_every_leaf_of_the_serving_config_has_another_legal_value_or_is_listed_and_refused_by_name() -> None:
    untried = [leaf for leaf in SERVING_LEAVES if not alternatives(ServingConfig, SERVING, leaf)]
    assert {name_of(leaf) for leaf in untried} == set(REFUSED)
    unnamed = [text for leaf in untried for text in refusals(ServingConfig, SERVING, leaf) if not is_named(leaf, text)]
    assert unnamed == []


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.long
@pytest.mark.parametrize("leaf", [leaf for leaf in SERVING_LEAVES if name_of(leaf) not in REFUSED], ids=name_of)
async def test_every_leaf_of_the_serving_config_changes_what_jobs_and_questions_do(
    leaf: Leaf, served_undisturbed: dict[str, object], tmp_path: Path
) -> None:
    for number, serving in enumerate(alternatives(ServingConfig, SERVING, leaf)):
        if await served(tmp_path / f"served-{number}", serving) != served_undisturbed:
            return
    pytest.fail(f"no other value of {name_of(leaf)} changes anything")
