"""HumanEval and MBPP with their own solutions, for tests and benchmarks.

The files lie beside the checkout, in `../shared/data/code`, and are read in place. Their tests are taken as the
orchestrator's loaders make them, so that what is run here is what a training run would run.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from troupe_orchestrator.datasets.loading import load
from troupe_orchestrator.datasets.task import AssertionTests

FOLDER = Path(__file__).parents[5] / "shared" / "data" / "code"
FILES = {"HumanEval": "HumanEval.jsonl.gz", "MBPP": "mbpp.jsonl"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem, the solution that comes with it, and its hidden tests as assertions."""

    problem_id: str
    solution: str
    setup: str
    cases: tuple[str, ...]
    entry_point: str


def problems(name: str) -> list[Problem]:
    """All problems of a set.

    Raises:
        FileNotFoundError: the file is not beside the checkout.
    """
    path = FOLDER / FILES[name]
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    found = []
    rows = [json.loads(line) for line in text.decode().splitlines()]
    for row, task in zip(rows, load(path.name, content).tasks, strict=True):
        solution = row["prompt"] + row["canonical_solution"] if "prompt" in row else row["code"]
        tests = task.reference
        assert isinstance(tests, AssertionTests)
        found.append(Problem(task.task_id, solution, tests.setup, tests.cases, tests.entry_point))
    return found
