"""What a phase says of itself where there is no terminal."""

import io

import pytest
from rich.console import Console
from troupe_client import phase
from troupe_client.phase import Phase


def said(lines_seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(phase, "LINE_SECONDS", lines_seconds)
    written = io.StringIO()
    with Phase(Console(file=written, force_terminal=False), "rehearsal") as running:
        for done in (0, 5, 5, 10):
            running.advance_to(done, 10)
    return written.getvalue().splitlines()


def test_without_a_terminal_a_phase_is_heard_of_at_its_begin_its_end_and_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = said(0.0, monkeypatch)
    assert lines[0] == "rehearsal: begins"
    assert "rehearsal: 5 of 10" in lines
    assert lines.count("rehearsal: 5 of 10") == 1
    assert lines[-1].startswith("rehearsal: took ")


def test_lines_come_no_more_often_than_their_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(said(3600.0, monkeypatch)) == 2
