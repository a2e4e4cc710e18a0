"""AIME and AMC: `problem` and `answer`, a whole number as text (`025`) or as a decimal (`27.0`).

The question is the problem as it stands: that all answers of AIME lie between 0 and 999 is no agent's to know.
"""

from troupe_orchestrator.datasets.rows import Row, RowPlace, answer_text, text_field
from troupe_orchestrator.datasets.task import MathReference, Task


def matches_amc(row: Row) -> bool:
    return matches_aime(row) and "AMC" in str(row.get("url", ""))


def matches_aime(row: Row) -> bool:
    return {"problem", "answer"} <= row.keys()


def read_amc(row: Row, place: RowPlace) -> Task:
    return _read(row, place, "amc")


def read_aime(row: Row, place: RowPlace) -> Task:
    return _read(row, place, "aime")


def _read(row: Row, place: RowPlace, family: str) -> Task:
    reference = MathReference(answer_text(row.get("answer"), "answer"))
    return Task(place.task_id, family, "math", text_field(row, "problem"), reference)
