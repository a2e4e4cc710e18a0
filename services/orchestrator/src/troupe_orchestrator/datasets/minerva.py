r"""Minerva's course problems: `problem`, `type`, and `solution` with the answer in `\boxed{}`, often a rounded decimal.

A rounded decimal counts as reached by what rounds to it: half a unit of its last digit.
"""

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, text_field
from troupe_orchestrator.datasets.task import MathReference, Task
from troupe_orchestrator.grading.answers import boxed
from troupe_orchestrator.grading.numbers import read_number


def matches(row: Row) -> bool:
    return {"problem", "solution", "type"} <= row.keys() and "level" not in row


def read(row: Row, place: RowPlace) -> Task:
    answer = boxed(text_field(row, "solution"))
    if answer is None:
        raise RowError(r"`solution` must give the answer in \boxed{}")
    number = read_number(answer)
    tolerance = float(number.half_unit) if number is not None and number.half_unit is not None else None
    return Task(
        place.task_id, "minerva", "math", text_field(row, "problem"), MathReference(answer, tolerance=tolerance)
    )
