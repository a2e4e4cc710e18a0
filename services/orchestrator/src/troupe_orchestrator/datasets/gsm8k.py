"""GSM8K: `question`, and `answer` whose value follows `####`."""

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, text_field
from troupe_orchestrator.datasets.task import MathReference, Task

_MARK = "####"


def matches(row: Row) -> bool:
    return {"question", "answer"} <= row.keys() and _MARK in str(row["answer"])


def read(row: Row, place: RowPlace) -> Task:
    _, mark, value = text_field(row, "answer").rpartition(_MARK)
    if not mark or not value.strip():
        raise RowError(f"`answer` must end with {_MARK} and the value")
    return Task(place.task_id, "gsm8k", "math", text_field(row, "question"), MathReference(value.strip()))
