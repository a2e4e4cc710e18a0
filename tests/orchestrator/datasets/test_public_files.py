"""The public problem files load whole, and every reference is reached by itself and by nothing next to it."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from troupe_orchestrator.datasets.loading import LoadedDataset, load
from troupe_orchestrator.datasets.task import AssertionTests, MathReference
from troupe_orchestrator.grading.math_grader import is_correct, never_equal
from troupe_orchestrator.grading.numbers import read_number

FOLDER = Path(__file__).parents[4] / "shared" / "data"

MATH_FILES = [
    ("math/gsm8k_train.jsonl", "gsm8k", 7473),
    ("math/gsm8k_test.jsonl", "gsm8k", 1319),
    ("math/math_test.jsonl", "math", 5000),
    ("math/aime24.jsonl", "aime", 30),
    ("math/amc23.jsonl", "amc", 40),
    ("math/olympiadbench.jsonl", "olympiadbench", 675),
    ("math/minerva_math.jsonl", "minerva", 272),
]
CODE_FILES = [("code/HumanEval.jsonl.gz", "humaneval", 164), ("code/mbpp.jsonl", "mbpp", 974)]

Loader = Callable[[str], LoadedDataset]


@pytest.fixture(scope="module")
def public() -> Loader:
    def read(name: str) -> LoadedDataset:
        path = FOLDER / name
        if not path.exists():
            pytest.skip(f"the public problem file {name} is not beside the checkout, in ../shared/data")
        return load(path.name, path.read_bytes())

    return read


@pytest.mark.parametrize(("name", "form", "count"), MATH_FILES + CODE_FILES)
def test_a_public_file_loads_whole(public: Loader, name: str, form: str, count: int) -> None:
    loaded = public(name)
    assert (loaded.format, len(loaded.tasks), loaded.errors) == (form, count, ())


@pytest.mark.parametrize(("name", "form", "count"), MATH_FILES)
def test_every_reference_is_reached_by_itself_and_no_exact_one_by_its_neighbour(
    public: Loader, name: str, form: str, count: int
) -> None:
    for task in public(name).tasks:
        reference = task.reference
        assert isinstance(reference, MathReference)
        assert is_correct(reference, ", ".join(reference.values), never_equal), task.task_id
        number = read_number(reference.values[0].replace(",", ""))
        if len(reference.values) == 1 and number is not None and number.half_unit is None:
            assert not is_correct(reference, str(number.value + 1), never_equal), task.task_id
            assert not is_correct(reference, str(number.value - 1), never_equal), task.task_id


def test_olympiad_references_stay_lists(public: Loader) -> None:
    references = [task.reference for task in public("math/olympiadbench.jsonl").tasks]
    assert all(isinstance(reference, MathReference) and isinstance(reference.answer, tuple) for reference in references)


@pytest.mark.parametrize(("name", "form", "count"), CODE_FILES)
def test_a_question_names_the_function_and_shows_no_hidden_test(
    public: Loader, name: str, form: str, count: int
) -> None:
    for task in public(name).tasks:
        tests = task.reference
        assert isinstance(tests, AssertionTests)
        assert tests.entry_point in task.question
        for case in tests.cases:
            shown = [
                line
                for line in case.splitlines()
                if line.strip().startswith("assert") and line.strip() in task.question
            ]
            assert shown == [], task.task_id
            ast.parse(f"{tests.setup}\n{case}")


def test_setup_that_uses_the_solution_runs_after_it(public: Loader) -> None:
    trees = [task for task in public("code/mbpp.jsonl").tasks if "Also define `Node`" in task.question]
    assert trees
    for task in trees:
        assert isinstance(task.reference, AssertionTests)
        assert task.reference.setup == ""
        assert all(case.startswith("root = Node(1)") for case in task.reference.cases)
