"""The task suite: its sides, its questions, its problem file."""

import json
import re
from pathlib import Path
from random import Random

import pytest
from troupe_starter import tasks
from troupe_starter.__main__ import main
from troupe_starter.families import calc, prog, word
from troupe_starter.families.expression import Operands, all_operands
from troupe_starter.task import SPLITS, Split


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_no_task_of_a_family_is_on_both_sides(family: str) -> None:
    sides = {split: set(tasks.operands_of(family, split)) for split in SPLITS}
    assert sides["train"]
    assert sides["held_out"]
    assert not sides["train"] & sides["held_out"]
    held_out = len(sides["held_out"]) / sum(map(len, sides.values()))
    assert 0.15 < held_out < 0.25


def test_no_question_is_on_both_sides() -> None:
    for family in tasks.FAMILIES.values():
        questions: dict[Split, set[str]] = {split: set() for split in SPLITS}
        numbers = random_operands(family.NAME)
        for operands in numbers:
            questions[operands.side].add(family.task(operands).question)
        assert not questions["train"] & questions["held_out"]


def random_operands(family: str) -> list[tasks.Operands]:
    random = Random(5)
    return [tasks.FAMILIES[family].draw(random) for _ in range(3_000)]


def test_an_expression_is_on_one_side_whichever_family_and_order_of_factors() -> None:
    for operands in all_operands(range(21, 30)):
        expression = operands.expression
        assert {expression.left, expression.right} == {operands.low, operands.high}
        assert Operands(operands.low, operands.high, operands.sign, operands.addend).side == operands.side
    assert calc.task(Operands(23, 47, "+", 35)).id != word.task(Operands(23, 47, "+", 35)).id


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_distinct_balanced_on_its_side_and_the_same_each_time(split: Split) -> None:
    sampled = tasks.sample(split, 450, seed=7)
    assert sampled == tasks.sample(split, 450, seed=7)
    assert sampled != tasks.sample(split, 450, seed=8)
    assert len({task.id for task in sampled}) == len({task.question for task in sampled}) == 450
    assert [task.family for task in sampled[:6]] == ["calc", "prog", "word"] * 2
    other = {task.id for task in tasks.sample("train" if split == "held_out" else "held_out", 450, seed=7)}
    assert not other & {task.id for task in sampled}


def test_asking_for_more_tasks_than_a_family_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family prog has \d+ held_out tasks"):
        tasks.sample("held_out", 1_000, seed=0)


def test_no_question_holds_its_answer_or_a_hidden_test() -> None:
    for split in SPLITS:
        for task in tasks.sample(split, 450, seed=0):
            if task.task_type == "math":
                assert task.answer not in re.findall(r"-?\d+", task.question)
                assert not task.tests
            else:
                assert len(task.tests) >= 4
                for test in task.tests:
                    assert test.stdin.strip() not in task.question
                    assert not task.answer


def test_hidden_tests_tell_all_programs_of_the_family_apart() -> None:
    by_tests = {tuple(prog.task(operands).tests): operands for operands in prog.every()}
    assert len(by_tests) == len(list(prog.every()))
    for operands in prog.every():
        for other in prog.COMBINATIONS:
            rival = prog.Operands(other, operands.sign, operands.constant)
            if rival != operands:
                pairs = [tuple(map(int, test.stdin.split())) for test in prog.task(operands).tests]
                assert any(operands.output(*pair) != rival.output(*pair) for pair in pairs)


def test_answers_are_what_python_says() -> None:
    for task in tasks.sample("train", 300, seed=1):
        if task.family == "calc" and task.question.startswith("What is "):
            assert str(eval(task.question.removeprefix("What is "))) == task.answer
    assert word.task(Operands(47, 82, "+", 35)).answer == "3889"
    assert word.in_words(47) == "forty seven"


def test_the_command_writes_troupes_problem_format(tmp_path: Path) -> None:
    out = tmp_path / "held_out.jsonl"
    assert main(["tasks", "--split", "held_out", "--count", "30", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 30
    for line in lines:
        common = {"id", "family", "task_type", "question"}
        assert set(line) == common | ({"answer"} if line["task_type"] == "math" else {"tests"})
        if line["task_type"] == "code":
            assert all(len(pair) == 2 and pair[0].endswith("\n") for pair in line["tests"]["stdin"])


def test_the_command_says_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tasks", "--split", "held_out", "--count", "9999", "--out", str(tmp_path / "x.jsonl")]
    assert main(arguments) == 1
    assert "ask for fewer tasks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
