"""HumanEval and MBPP: every solution of theirs is accepted, and a changed one exactly where Python itself accepts it."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from problem_sets import FILES, FOLDER, Problem, problems
from problem_sets.mutants import Mutant, mutants
from problem_sets.plain import CPU_SECONDS, FAILS, PASSES, PlainInterpreter
from troupe.v1 import sandbox_pb2
from troupe_sandbox import Limits, Sandbox, TestReport
from troupe_sandbox.settings import base_interpreter

COUNTS = {"HumanEval": 164, "MBPP": 974}
# The slowest of them needs 4 s of an idle processor.
PATIENT = Limits(cpu_seconds=60, wall_seconds=240)
SEED = 20
PROBLEMS_WITH_MUTANTS = 60
MUTANTS_OF_EACH = 3


def read(name: str) -> list[Problem]:
    if not (FOLDER / FILES[name]).exists():
        pytest.skip(f"the public problem file {FILES[name]} is not beside the checkout, in ../shared/data/code")
    return problems(name)


@pytest.fixture(scope="module", params=["full", "pod"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, test_slots=2) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[PlainInterpreter]:
    with PlainInterpreter(str(base_interpreter())) as interpreter:
        yield interpreter


def run(sandbox: Sandbox, problem: Problem, solution: str, **options: Any) -> TestReport:
    return sandbox.run_tests(solution, problem.cases, setup=problem.setup, entry_point=problem.entry_point, **options)


@pytest.mark.parametrize("name", ["HumanEval", pytest.param("MBPP", marks=pytest.mark.long)])
def test_every_solution_of_a_public_set_is_accepted(sandbox, name):
    found = read(name)
    assert len(found) == COUNTS[name]
    refused = []
    for problem in found:
        report = run(sandbox, problem, problem.solution, limits=PATIENT)
        if not report.passed:
            refused.append((problem.problem_id, report.cases))
    assert refused == []


@pytest.mark.parametrize("name", FILES)
def test_solutions_are_accepted_through_the_service(undisturbed, name):
    for problem in read(name)[::10]:
        tests = sandbox_pb2.AssertionTests(setup=problem.setup, cases=problem.cases, entry_point=problem.entry_point)
        request = sandbox_pb2.RunTestsRequest(
            solution=problem.solution, assertion_tests=tests, limits=sandbox_pb2.Limits(cpu_seconds=60)
        )
        results, outcome = undisturbed.run_tests(request)
        assert outcome.passed, (problem.problem_id, results)
        assert outcome.cases_total == len(problem.cases)


@pytest.mark.parametrize(
    ("problem_id", "solution"),
    [
        # The test computes a polynomial with a function of the prompt, or has one encode what is to be decoded.
        ("HumanEval/32", "def poly(xs, x): return 0.0\ndef find_zero(xs): return 0.0"),
        ("HumanEval/38", "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"),
        ("HumanEval/4", "def abs(x): return 0\ndef mean_absolute_deviation(numbers): return 0.0"),
        ("mbpp/2", "def set(x): return 0\ndef similar_elements(a, b): return ()"),
    ],
)
def test_a_solution_that_redefines_what_the_tests_call_is_not_accepted(sandbox, problem_id, solution):
    found = {problem.problem_id: problem for name in FILES for problem in read(name)}
    report = run(sandbox, found[problem_id], solution)
    assert not report.passed
    assert {case.verdict for case in report.cases} == {"wrong_answer"}


def disagreement(sandbox: Sandbox, plain: PlainInterpreter, problem: Problem, mutant: Mutant) -> str | None:
    """Where the sandbox and the interpreter say different things of a mutant."""
    says = plain.ask(problem.setup, mutant.source, problem.cases, problem.entry_point)
    limits = Limits(cpu_seconds=CPU_SECONDS)
    report = run(sandbox, problem, mutant.source, limits=limits, stop_at_first_failure=True)
    verdicts = {case.verdict for case in report.cases}
    if (report.passed and says == FAILS) or (says == PASSES and not report.passed and "cpu_limit" not in verdicts):
        return f"{problem.problem_id} line {mutant.line} {mutant.kind}: Python {says}, the sandbox {verdicts}"
    return None


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("name", ["HumanEval", pytest.param("MBPP", marks=pytest.mark.long)])
def test_a_changed_solution_is_accepted_only_where_python_accepts_it(sandbox, plain, name):
    chance = random.Random(SEED)
    found = chance.sample(read(name), PROBLEMS_WITH_MUTANTS)
    tried, disagreements = 0, []
    for problem in found:
        if plain.ask(problem.setup, problem.solution, problem.cases, problem.entry_point) != PASSES:
            continue
        every = list(mutants(problem.solution))
        for mutant in chance.sample(every, min(MUTANTS_OF_EACH, len(every))):
            tried += 1
            disagreements.append(disagreement(sandbox, plain, problem, mutant))
    assert tried > 2 * PROBLEMS_WITH_MUTANTS
    assert [said for said in disagreements if said] == []


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("x = a < b", "comparison", {"x = a <= b"}),
        ("x = a < b != c", "comparison", {"x = a <= b != c", "x = a < b == c"}),
        ("x += a * b", "arithmetic", {"x -= a * b", "x += a // b"}),
        ("x = -a", "arithmetic", {"x = a"}),
        ("x = [1, True, 'a']", "constant", {"x = [2, True, 'a']", "x = [0, True, 'a']", "x = [1, False, 'a']"}),
        ("x = [a for a in b if a]", "condition", {"x = [a for a in b if not a]"}),
        ("while a: pass", "condition", {"while not a:\n    pass"}),
        ("x = not a or b", "logic", {"x = not a and b", "x = a or b"}),
        ("def f() -> 'int':\n    return a", "return_value", {"def f() -> 'int':\n    return None"}),
        ("range(a, b)", "off_by_one", {"range(a, b + 1)", "range(a, b - 1)"}),
        ("a[i:j]", "off_by_one", {"a[i + 1:j]", "a[i:j + 1]"}),
        ("a[i]", "off_by_one", {"a[i + 1]"}),
    ],
)
def test_a_mutant_differs_in_one_place(source, kind, expected):
    made = list(mutants(source))
    assert {mutant.source for mutant in made if mutant.kind == kind} >= expected
    assert len({mutant.source for mutant in made}) == len(made)


def test_what_is_not_run_is_not_changed():
    assert list(mutants("def f(x: 'a') -> 'b':\n    'Text.'\n    pass")) == []
