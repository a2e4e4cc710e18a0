"""OlympiadBench, text only: `question`, `final_answer` (a list), `is_multiple_answer`, `unit`, `error`."""

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, optional_text, text_field, text_list
from troupe_orchestrator.datasets.task import MathReference, Task


def matches(row: Row) -> bool:
    return {"question", "final_answer"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    multiple = row.get("is_multiple_answer", False)
    if not isinstance(multiple, bool):
        raise RowError(f"`is_multiple_answer` must be true or false, got {multiple!r:.80}")
    question = text_field(row, "question")
    context = optional_text(row, "context", "")
    return Task(
        task_id=place.task_id,
        family="olympiadbench",
        task_type="math",
        question=f"{context}\n\n{question}" if context.strip() else question,
        reference=MathReference(
            answer=text_list(row, "final_answer"),
            multiple=multiple,
            unit=optional_text(row, "unit", "") or None,
            tolerance=_tolerance(row),
        ),
    )


def _tolerance(row: Row) -> float | None:
    text = optional_text(row, "error", "")
    try:
        return float(text) if text.strip() else None
    except ValueError as error:
        raise RowError(f"`error` must be a number as text, got {text!r:.80}") from error
