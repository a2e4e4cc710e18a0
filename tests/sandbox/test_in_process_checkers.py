"""What a user of `Sandbox` and `AsyncSandbox` can say about how output is judged."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from troupe_sandbox import AsyncSandbox, CheckerProgram, FloatTokens, Limits, Sandbox, TestReport

ECHO = "print(input())"
PERMUTATION = """
wanted, got = sorted(stdin.read().split()), actual.read().split()
assert sorted(got) == wanted, f"not a permutation of {len(wanted)} words"
assert expected.read() == "any"
"""
Run = Callable[..., TestReport]


@pytest.fixture(scope="module", params=[Sandbox, AsyncSandbox])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`run_tests` of either class."""
    root: Path = tmp_path_factory.mktemp("checkers")
    if request.param is Sandbox:
        with Sandbox(test_slots=1, work_root=root) as sandbox:
            yield sandbox.run_tests
        return
    with asyncio.Runner() as runner:
        started = runner.run(AsyncSandbox(test_slots=1, work_root=root).__aenter__())

        async def ask(*arguments: Any, **options: Any) -> TestReport:
            return await started.run_tests(*arguments, **options)

        yield lambda *arguments, **options: runner.run(ask(*arguments, **options))
        runner.run(started.close())


def verdicts(report: TestReport) -> list[str]:
    return [case.verdict for case in report.cases]


def test_the_tolerance_is_the_callers(run):
    cases = [("1.009", "1.0"), ("1.011", "1.0"), ("1000.5", "1000.1"), ("7", "8")]
    wrong = "wrong_answer"
    assert verdicts(run(ECHO, cases, checker="float_tokens")) == [wrong] * 4
    assert verdicts(run(ECHO, cases, checker=FloatTokens(absolute=0.01))) == ["ok", wrong, wrong, wrong]
    assert verdicts(run(ECHO, cases, checker=FloatTokens(relative=0.001))) == [wrong, wrong, "ok", wrong]


def test_a_checker_program_accepts_by_its_end_and_rejects_by_an_assertion(run):
    solution = "words = input().split()\nprint(*(words if len(words) == 1 else words[:-1]))"
    report = run(solution, [("c a b", "any"), ("stay", "any")], checker=CheckerProgram(PERMUTATION))
    assert verdicts(report) == ["wrong_answer", "ok"]
    assert report.cases[0].detail == "the checker rejects it: not a permutation of 3 words"


def test_a_checker_program_that_fails_raises_and_its_limits_are_its_own(run):
    with pytest.raises(RuntimeError, match=r"(?s)checker failed on case 0.*ValueError: mine"):
        run(ECHO, [("1", "1")], checker=CheckerProgram("raise ValueError('mine')"))
    short = Limits(cpu_seconds=0.2)
    with pytest.raises(RuntimeError, match="CPU time"):
        run(ECHO, [("1", "1")], checker=CheckerProgram("while True: pass", limits=short))
    # The solution's own limits are not those of its checker.
    busy = CheckerProgram("import time\nwhile time.process_time() < 0.4: pass")
    assert run(ECHO, [("1", "1")], checker=busy, limits=short).passed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"checker": FloatTokens()}, "allows nothing"),
        ({"checker": FloatTokens(absolute=-1.0)}, "absolute is -1"),
        ({"checker": FloatTokens(relative=float("nan"))}, "relative is NaN"),
        ({"checker": CheckerProgram(" \n")}, "would accept everything"),
        ({"checker": CheckerProgram("assert 1", Limits(memory_bytes=1))}, "memory_bytes"),
        ({"checker": "prayer"}, "unknown checker"),
        ({"setup": "x = 1"}, "setup and entry_point are for assertions"),
    ],
)
def test_what_cannot_be_is_refused_by_name(run, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(ECHO, [("1", "1")], **options)


def test_assertions_take_no_checker(run):
    with pytest.raises(ValueError, match="assertions judge for themselves"):
        run("x = 1", ["assert x"], checker=CheckerProgram("assert 1"))
