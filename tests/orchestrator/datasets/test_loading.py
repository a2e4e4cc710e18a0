"""Problem files: formats are told from keys, bad lines are named, good ones kept."""

import gzip
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.datasets.loading import DatasetError, load
from troupe_orchestrator.datasets.task import AssertionTests, Checker, MathReference, StdinTests


def lines(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


MATH_ROW = {"id": "a", "family": "calc", "task_type": "math", "question": "1+1?", "answer": "2"}
CODE_ROW = {
    "id": "b",
    "task_type": "code",
    "question": "Add.",
    "tests": {"stdin": [["1 2\n", "3\n"]], "checker": "lines"},
}
MBPP_ROW = {"text": "Add.", "test_list": ["assert add(1, 2) == 3"]}
HUMANEVAL_ROW = {"prompt": "def f():\n    pass", "test": "def check(f):\n    assert f()", "entry_point": "f"}


def test_the_own_format_holds_values_and_both_kinds_of_tests() -> None:
    functions = {
        "id": "c",
        "task_type": "code",
        "question": "f",
        "tests": {"assertions": ["assert f()"], "setup": "import re"},
    }
    loaded = load("some/tasks.jsonl", lines(MATH_ROW, CODE_ROW, functions))
    assert loaded.format == "troupe"
    assert loaded.errors == ()
    first, second, third = loaded.tasks
    assert (first.task_id, first.family, first.reference) == ("a", "calc", MathReference("2"))
    assert (second.family, second.reference) == ("tasks", StdinTests((("1 2\n", "3\n"),), Checker.LINES))
    assert third.reference == AssertionTests("import re", ("assert f()",), "")


def test_a_bad_line_is_named_with_its_file_and_the_others_are_kept() -> None:
    content = b"\n".join([lines(MATH_ROW), b"{not json", b"[1]", b"\xff\xfe", b"", lines(CODE_ROW)])
    loaded = load("tasks.jsonl", content)
    assert [task.task_id for task in loaded.tasks] == ["a", "b"]
    assert [str(error).split(": ")[0] for error in loaded.errors] == ["tasks.jsonl:2", "tasks.jsonl:3", "tasks.jsonl:4"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"question": " "}, "question"),
        ({"question": 5}, "question"),
        ({"answer": None}, "answer"),
        ({"answer": []}, "answer"),
        ({"answer": float("nan")}, "answer"),
        ({"answer": True}, "answer"),
        ({"task_type": "poem"}, "task_type"),
        ({"id": ""}, "id"),
        ({"hint": "between 0 and 999"}, "hint"),
        ({"tests": {"stdin": [["1", "2"]]}}, "tests"),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, object], field: str) -> None:
    loaded = load("t.jsonl", lines(MATH_ROW, MATH_ROW | {"id": "z"} | change))
    assert len(loaded.tasks) == 1
    assert loaded.errors[0].line == 2
    assert field in loaded.errors[0].message


@pytest.mark.parametrize(
    "tests",
    [
        {},
        {"stdin": []},
        {"stdin": [["1"]]},
        {"stdin": [[1, 2]]},
        {"assertions": []},
        {"stdin": [["1", "2"]], "checker": "eye"},
        {"stdin": [["1", "2"]], "seed": 1},
        {"stdin": [["1", "2"]], "assertions": ["assert 1"]},
    ],
)
def test_tests_that_test_nothing_or_say_too_much_are_refused(tests: object) -> None:
    loaded = load("t.jsonl", lines(MATH_ROW, CODE_ROW | {"tests": tests}))
    assert [error.line for error in loaded.errors] == [2]


def test_a_second_task_of_one_id_is_refused_by_line() -> None:
    loaded = load("t.jsonl", lines(MATH_ROW, CODE_ROW, MATH_ROW))
    assert len(loaded.tasks) == 2
    assert str(loaded.errors[0]) == "t.jsonl:3: the id 'a' is taken by line 1"


def test_list_valued_references_stay_lists() -> None:
    loaded = load("t.jsonl", lines(MATH_ROW | {"answer": ["2"]}, MATH_ROW | {"id": "b", "answer": [1, 2.5]}))
    assert [task.reference for task in loaded.tasks] == [MathReference(("2",)), MathReference(("1", "2.5"))]


def test_gzip_is_told_by_its_first_bytes() -> None:
    assert len(load("t.jsonl", gzip.compress(lines(MATH_ROW))).tasks) == 1
    with pytest.raises(DatasetError, match="not a whole gzip file"):
        load("t.jsonl.gz", gzip.compress(lines(MATH_ROW))[:-12])


def test_the_format_may_be_given_and_an_unknown_one_names_the_known() -> None:
    aime = {"problem": "p", "answer": "025", "url": "https://example.org/2023_AMC_12A"}
    assert load("t.jsonl", lines(aime)).format == "amc"
    assert load("t.jsonl", lines(aime), "aime").tasks[0].family == "aime"
    with pytest.raises(DatasetError, match="known: aime, amc"):
        load("t.jsonl", lines(aime), "csv")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no json at all", b'{"a": 1}', b"[]", b"[" * 100_000])
def test_a_file_without_a_task_is_an_error_that_names_it(content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"t\.jsonl"):
        load("t.jsonl", content)


HALF, NUL = "half \ud83d", "nul \0"
FUNCTION_ROW = {"id": "c", "task_type": "code", "question": "f", "tests": {"assertions": ["assert f()"]}}


@pytest.mark.parametrize("text", [HALF, NUL])
@pytest.mark.parametrize(
    ("good", "change", "field"),
    [
        (MATH_ROW, lambda text: {"id": text}, "id"),
        (MATH_ROW, lambda text: {"family": text}, "family"),
        (MATH_ROW, lambda text: {"question": text}, "question"),
        (MATH_ROW, lambda text: {"answer": text}, "answer"),
        (MATH_ROW, lambda text: {"answer": ["1", text]}, "answer"),
        (MATH_ROW, lambda text: {"grader": text}, "grader"),
        (CODE_ROW, lambda text: {"tests": {"stdin": [["1", "2"], [text, "3"]]}}, "tests"),
        (CODE_ROW, lambda text: {"tests": {"stdin": [["1", text]]}}, "tests"),
        (FUNCTION_ROW, lambda text: {"tests": {"assertions": [text]}}, "assertions"),
        (FUNCTION_ROW, lambda text: {"tests": {"assertions": ["1"], "setup": text}}, "setup"),
        (FUNCTION_ROW, lambda text: {"tests": {"assertions": ["1"], "entry_point": text}}, "entry_point"),
        (MBPP_ROW, lambda text: {"test_list": [text]}, "test_list"),
        (MBPP_ROW, lambda text: {"test_setup_code": text}, "test_setup_code"),
        (HUMANEVAL_ROW, lambda text: {"prompt": text}, "prompt"),
        (HUMANEVAL_ROW, lambda text: {"task_id": text}, "id"),
    ],
)
def test_text_that_no_message_or_table_can_hold_is_named_and_the_other_lines_are_kept(
    text: str, good: dict[str, object], change: Callable[[str], dict[str, object]], field: str
) -> None:
    loaded = load("t.jsonl", lines(good, good | {"id": "z"} | change(text)))
    assert len(loaded.tasks) == 1
    (error,) = loaded.errors
    assert (error.line, error.message.split("`")[1]) == (2, field)
    assert ("surrogate" if text == HALF else "NUL") in error.message
    assert json.loads(json.dumps(error.message)).encode()


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert load("t.jsonl", lines(MATH_ROW | {"question": "\U0001f600"})).tasks[0].question == "\U0001f600"


def test_keys_that_no_message_can_hold_are_told_escaped() -> None:
    with pytest.raises(DatasetError, match=r"the keys 'b', '\\ud83d' are those") as caught:
        load("t.jsonl", lines({HALF[-1]: 1, "b": 2}))
    assert str(caught.value).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_tasks_or_named_errors(content: bytes) -> None:
    loaded = load("t.jsonl", lines(MATH_ROW) + b"\n" + content)
    assert loaded.tasks[0].task_id == "a"
