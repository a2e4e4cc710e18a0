"""The project's own format: `id`, `task_type`, `question`, and `answer` or `tests`; `family` where there are several;
`grader` where a plug-in grades the answer.

`{"id": "a", "task_type": "math", "question": "What is 1 + 1?", "answer": "2"}`, `answer` also a list of which all are due;
`{..., "task_type": "code", "tests": {"stdin": [["1 2\\n", "3\\n"]], "checker": "tokens"}}`;
`{..., "task_type": "code", "tests": {"assertions": ["assert f(1) == 2"], "setup": "", "entry_point": "f"}}`.
"""

from typing import Any

from troupe_orchestrator.datasets.rows import (
    Row,
    RowError,
    RowPlace,
    answer_text,
    optional_text,
    text_field,
    text_list,
)
from troupe_orchestrator.datasets.task import AssertionTests, Checker, MathReference, StdinTests, Task

_KEYS = {"id", "family", "task_type", "question", "answer", "tests", "grader"}
_STDIN_KEYS = {"stdin", "checker"}
_ASSERTION_KEYS = {"assertions", "setup", "entry_point"}


def matches(row: Row) -> bool:
    return {"id", "task_type", "question"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    _refuse_others(row, _KEYS, "the row")
    task_type = row.get("task_type")
    if task_type not in ("math", "code"):
        raise RowError(f"`task_type` must be math or code, got {task_type!r:.80}")
    if ("tests" in row) != (task_type == "code") or ("answer" in row) != (task_type == "math"):
        raise RowError("a math task has `answer`, a code task has `tests`, and neither has both")
    if "grader" in row and task_type == "code":
        raise RowError("a code task is graded by its tests: leave out `grader`")
    return Task(
        task_id=text_field(row, "id"),
        family=optional_text(row, "family", place.stem),
        task_type=task_type,
        question=text_field(row, "question"),
        reference=_tests(row["tests"]) if task_type == "code" else _answer(row["answer"]),
        grader=optional_text(row, "grader", ""),
    )


def _answer(value: Any) -> MathReference:
    if not isinstance(value, list):
        return MathReference(answer_text(value, "answer"))
    if not value:
        raise RowError("`answer` must have at least one item")
    return MathReference(tuple(answer_text(item, "answer") for item in value))


def _tests(tests: Any) -> StdinTests | AssertionTests:
    if not isinstance(tests, dict) or ("stdin" in tests) == ("assertions" in tests):
        raise RowError("`tests` must be an object with either `stdin` or `assertions`")
    if "assertions" in tests:
        _refuse_others(tests, _ASSERTION_KEYS, "`tests`")
        return AssertionTests(
            optional_text(tests, "setup", ""),
            text_list(tests, "assertions"),
            optional_text(tests, "entry_point", ""),
        )
    _refuse_others(tests, _STDIN_KEYS, "`tests`")
    cases = tests["stdin"]
    if not isinstance(cases, list) or not cases:
        raise RowError("`tests.stdin` must be a list with at least one pair of input and output")
    for case in cases:
        if not isinstance(case, list) or len(case) != 2 or not all(isinstance(part, str) for part in case):
            raise RowError(f"`tests.stdin` must hold pairs of texts [input, output], got {case!r:.80}")
    checker = optional_text(tests, "checker", Checker.TOKENS)
    if checker not in list(Checker):
        raise RowError(f"`tests.checker` must be one of {', '.join(Checker)}, got {checker!r:.80}")
    return StdinTests(tuple((stdin, expected) for stdin, expected in cases), Checker(checker))


def _refuse_others(row: Row, known: set[str], where: str) -> None:
    unknown = sorted(row.keys() - known)
    if unknown:
        raise RowError(f"{where} has the unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
