"""Reading single rows: typed access to their fields, with errors that name the field."""

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


class RowError(ValueError):
    """A row that is no task; the message names the field and what is due."""


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands. `stem` is the file's name without folders and endings, `line` counts from 1."""

    stem: str
    line: int

    @property
    def task_id(self) -> str:
        """Id of a task whose row has none."""
        return f"{self.stem}/{self.line}"


def check_text(text: str, key: str) -> str:
    """A text that messages and tables can hold, as it is: whole characters, none of them NUL.

    Raises:
        RowError: it is not; JSON can say both, as half a surrogate pair and `\\u0000`.
    """
    if "\0" in text:
        raise RowError(f"`{key}` must hold no NUL, got one as character {text.index(chr(0)) + 1}: take it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"`{key}` must be whole characters, got half a surrogate pair, {text[error.start]!r}, as character "
            f"{error.start + 1}: write the other half or take it out"
        ) from error
    return text


def text_field(row: Row, key: str) -> str:
    """A text that is not blank."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"`{key}` must be a text that is not empty, got {value!r:.80}")
    return check_text(value, key)


def optional_text(row: Row, key: str, default: str) -> str:
    """A text, or the default where the key is absent or null."""
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise RowError(f"`{key}` must be a text, got {value!r:.80}")
    return check_text(value, key)


def text_list(row: Row, key: str) -> tuple[str, ...]:
    """A list of texts with at least one item."""
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RowError(f"`{key}` must be a list of texts with at least one item, got {value!r:.80}")
    return tuple(check_text(item, key) for item in value)


def answer_text(value: Any, key: str) -> str:
    """A reference as text: numbers as they are written, 27.0 as 27."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"`{key}` must be a text or a number, got {value!r:.80}")
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise RowError(f"`{key}` must be a finite number, got {value!r}")
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    if not text.strip():
        raise RowError(f"`{key}` must not be empty")
    return check_text(text.strip(), key)
