"""Formats, graders, terms and estimators by name: what a config and a file may say, and what a grader may do."""

import json
import os
from pathlib import Path

import pytest
from distributions import install
from troupe_orchestrator.datasets.loading import DatasetError, load
from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.grades import Correct, GraderFault, Incorrect
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rewards import ExecutionFacts, RewardConfig, RewardTermError, reward
from troupe_orchestrator.run_config import ConfigError, parse_run_config

CODE_ROW = {"id": "c", "task_type": "code", "question": "f", "tests": {"assertions": ["assert f()"]}}


def test_unknown_names_in_a_config_are_refused_by_their_keys() -> None:
    config = {
        "dataset": {"train": "t.jsonl"},
        "steps": 1,
        "stages": [{"train": "both", "steps": 1}],
        "rewards": {"executor": {"terms": {"brevvity": 0.5}}, "designer": {"terms": {"success": 1.0}}},
        "credit": {"estimator": "nope"},
    }
    with pytest.raises(ConfigError) as caught:
        parse_run_config(json.dumps(config))
    problems = dict(caught.value.problems)
    assert "no reward term is named 'brevvity'; known: none; a plug-in" in problems["rewards.executor.terms"]
    assert "success is a term of Troupe's own" in problems["rewards.designer.terms"]
    assert "no estimator is named 'nope'; known: agent_turn" in problems["credit"]


def test_a_grader_that_a_file_names_is_looked_up_when_the_file_is_loaded(examples: Path) -> None:
    row = {"id": "a", "task_type": "math", "question": "q", "answer": "1..2"}
    loaded = load(
        "t.jsonl", "\n".join(json.dumps(row | {"id": name, "grader": name}) for name in ("interval", "x")).encode()
    )
    assert [task.grader for task in loaded.tasks] == ["interval"]
    assert "no grader is named 'x'; known: interval (of troupe-example-interval 0.1.0)" in str(loaded.errors[0])
    by_config = load("t.jsonl", json.dumps(row).encode(), grader="interval")
    assert by_config.tasks[0].grader == "interval"


def test_a_grader_for_programs_is_refused(examples: Path) -> None:
    by_config = load("t.jsonl", json.dumps(CODE_ROW).encode(), grader="interval")
    assert "graded by its tests, not by the grader 'interval'" in str(by_config.errors[0])
    by_row = load("t.jsonl", json.dumps(CODE_ROW | {"grader": "interval"}).encode())
    assert "graded by its tests: leave out `grader`" in str(by_row.errors[0])


def test_an_unknown_format_is_refused_with_those_that_there_are(examples: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"t\.jsonl: no data set format is named 'csv'; known: .*pairs \(of troupe-ex"
    ):
        load("t.jsonl", b"{}", "csv")


def test_a_format_cannot_bring_in_text_that_no_message_can_hold(site: Path) -> None:
    source = (
        "import json\n"
        "from troupe_orchestrator.datasets.task import MathReference, Task\n"
        "def matches(row): return True\n"
        "def read(row, place): return Task(place.task_id, 'n', 'math', 'q', MathReference(json.loads(row['inner'])))\n"
    )
    install(site, "nested", {"troupe.datasets": {"nested": "format_nested"}}, {"format_nested": source})
    rows = [{"inner": json.dumps(text)} for text in ("2", "\ud83d", "3")]
    loaded = load("t.jsonl", "\n".join(json.dumps(row) for row in rows).encode(), "nested")
    assert [task.reference for task in loaded.tasks] == [MathReference("2"), MathReference("3")]
    assert "t.jsonl:2: `answer` must be whole characters" in str(loaded.errors[0])


async def test_a_grader_runs_in_a_worker_and_its_failures_are_faults_and_not_grades(examples: Path, site: Path) -> None:
    sources = {
        "raises": "def grade(question, reference, answer): raise KeyError('unit')",
        "says": "def grade(question, reference, answer): return 1.0",
        "spins": "def grade(question, reference, answer):\n    while True: pass",
        "quits": "import os\ndef grade(question, reference, answer): os._exit(9)",
        "pid": "import os\ndef grade(question, reference, answer): return os.getpid() == int(reference[0])",
    }
    for name, source in sources.items():
        install(site, name, {"troupe.graders": {name: f"grader_{name}:grade"}}, {f"grader_{name}": source + "\n"})
    async with MathGrader(seconds=1.0) as grader:

        async def grade(name: str, answer: str = "1", reference: str = "1..2") -> object:
            return await grader.grade(MathReference(reference), answer, name, "q")

        assert isinstance(await grade("interval"), Correct)
        assert isinstance(await grade("interval", "2.5"), Incorrect)
        assert isinstance(await grade("interval", "no number"), Incorrect)
        assert isinstance(await grade("pid", reference=str(os.getpid())), Incorrect)
        for name, reason in (
            ("raises", "the grader 'raises' raised KeyError: 'unit'"),
            ("says", "the grader 'says' must return True or False, got 1.0"),
            ("spins", ""),  # by its CPU seconds, or by the wall where the machine is busy
            ("quits", "exit status 9"),
        ):
            fault = await grade(name)
            assert isinstance(fault, GraderFault)
            assert reason in fault.reason
        assert isinstance(await grade("interval"), Correct)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise KeyError('x')", "the reward term 'odd' raised KeyError: 'x'"),
        ("return float('nan')", "the reward term 'odd' must return a number from -1e+09 to 1e+09, got nan"),
        ("return 10**400", "the reward term 'odd' must return a number from -1e+09 to 1e+09, got 1" + "0" * 79),
        ("return -1.1e9", "the reward term 'odd' must return a number from -1e+09 to 1e+09, got -1100000000.0"),
        ("return '1'", "the reward term 'odd' must return a number from -1e+09 to 1e+09, got '1'"),
    ],
)
def test_a_term_that_fails_is_an_error_and_never_a_reward(site: Path, source: str, reason: str) -> None:
    install(
        site, "odd", {"troupe.rewards": {"odd": "odd_term:term"}}, {"odd_term": f"def term(facts):\n    {source}\n"}
    )
    config = RewardConfig.model_validate({"executor": {"terms": {"odd": 1.0}}})
    with pytest.raises(RewardTermError) as caught:
        reward(config, ExecutionFacts(True, 1.0, 1.0, 1))
    assert str(caught.value) == reason


def test_terms_of_plugins_are_added_to_those_of_ours_with_their_weights(examples: Path) -> None:
    config = RewardConfig.model_validate({"executor": {"terms": {"brevity": 0.5}}})
    breakdown = reward(config, ExecutionFacts(True, 0.0, 0.0, 1, last_turns=("word " * 50,)))
    assert breakdown.total("executor") == pytest.approx(1.0 + 0.5 * 0.75)
    assert breakdown.total("designer") == pytest.approx(1.0)
