"""Data set format `pairs`: rows such as {"prompt": "What is 1 + 1?", "gold": 2}."""

from troupe_orchestrator.datasets.rows import Row, RowPlace, answer_text, text_field
from troupe_orchestrator.datasets.task import MathReference, Task


def matches(row: Row) -> bool:
    return {"prompt", "gold"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    reference = MathReference(answer_text(row.get("gold"), "gold"))
    return Task(place.task_id, "pairs", "math", text_field(row, "prompt"), reference)
