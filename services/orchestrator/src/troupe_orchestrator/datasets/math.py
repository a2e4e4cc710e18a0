r"""MATH: `problem`, `level`, `type`, and `solution` whose last `\boxed{}` holds the answer."""

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, optional_text, text_field
from troupe_orchestrator.datasets.task import MathReference, Task
from troupe_orchestrator.grading.answers import boxed


def matches(row: Row) -> bool:
    return {"problem", "solution", "level"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    answer = boxed(text_field(row, "solution"))
    if answer is None:
        raise RowError(r"`solution` must give the answer in \boxed{}")
    family = optional_text(row, "type", "math").lower().replace(" ", "_")
    return Task(place.task_id, family, "math", text_field(row, "problem"), MathReference(answer))
