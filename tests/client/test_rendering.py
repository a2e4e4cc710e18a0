"""What is drawn on a terminal, and what on none."""

import io

import pytest
from rich.console import Console
from troupe.v1 import training_pb2
from troupe_client.render_text import interval, percent, visible
from troupe_client.render_train import HEADER, TrainView, step_line

METRICS = {"success": 0.25, "reward_designer": -0.125, "valid_scripts": 1.0, "tokens_per_second": 12345.6, "seconds": 4}


def committed(step: int, **metrics: float) -> training_pb2.RunEvent:
    told = training_pb2.StepCommitted(stage=2, trains="designer", metrics=metrics)
    return training_pb2.RunEvent(step=step, step_committed=told)


def test_a_steps_line_stands_under_its_headings() -> None:
    line = step_line(12, committed(12, **METRICS).step_committed)
    assert " ".join(line.split()) == "12 2 designer │ -0.125 25.0 % │ – – │ 100.0 % 12346 4.0"
    assert [index for index, character in enumerate(line) if character == "│"] == [
        index for index, character in enumerate(HEADER) if character == "│"
    ]
    assert len(line) == len(HEADER)


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_are_written_with_and_without_a_terminal(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, highlight=False, markup=False)
    progress = training_pb2.StepProgress(state=training_pb2.STEP_STATE_ROLLING, executions_done=1, executions_total=4)
    with TrainView(console, total_steps=2, committed_steps=0) as view:
        for step in (1, 2):
            view.show(training_pb2.RunEvent(step=step, progress=progress))
            view.show(committed(step, **METRICS))
        condition = training_pb2.Condition(reason="TaskDropped", message="[t-1]", remedy="none needed")
        view.show(training_pb2.RunEvent(condition=condition))
    text = written.getvalue()
    assert text.count("2 designer") == 2
    assert "TaskDropped: [t-1]; none needed" in text
    assert ("rolling out" in text) is terminal
    assert ("\x1b" in text) is terminal


def test_control_characters_are_pictured_and_text_is_kept() -> None:
    assert visible("läuft\n\t[b]") == "läuft\n\t[b]"
    assert visible("\x1b[2J\r\x00\x7f\x9b") == "␛[2J␍␀␡\ufffd"


def test_shares_are_written_as_percentages() -> None:
    assert percent(1 / 3) == "33.3 %"
    assert interval(0.5, 0.25, 0.755) == "50.0 % [25.0, 75.5]"
