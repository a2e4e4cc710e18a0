"""Loads a problem file: JSON lines, plain or gzipped. Pure: bytes in, tasks out.

A malformed line is an error with file and line, and the other lines are kept. What makes the whole file useless is a
`DatasetError`.
"""

import gzip
import io
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from troupe_contracts.plugins import PluginError

from troupe_orchestrator.datasets.formats import FORMATS, Format, candidates
from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, check_text
from troupe_orchestrator.datasets.task import AssertionTests, MathReference, StdinTests, Task
from troupe_orchestrator.grading.graders import GRADERS

MAX_BYTES = 1 << 30
"""Largest file, before and after decompression."""

_GZIP_MAGIC = b"\x1f\x8b"


class DatasetError(ValueError):
    """A file that cannot be used at all."""


@dataclass(frozen=True, slots=True)
class LineError:
    """A line that holds no task."""

    file: str
    line: int
    """From 1."""
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """The tasks of a file in its order, and the lines that hold none."""

    tasks: tuple[Task, ...]
    errors: tuple[LineError, ...]
    format: str


def load(name: str, content: bytes, format: str | None = None, grader: str | None = None) -> LoadedDataset:
    """Load a problem file.

    Args:
        name: of the file, for errors and for ids of tasks that have none.
        format: name of a format; None tells it from the keys of the first good line.
        grader: plug-in that grades all tasks; None leaves it to each task.

    Raises:
        DatasetError: unknown format or grader, no line whose format can be told, or bytes that are no such file.
    """
    rows, errors = _rows(name, _decompressed(name, content))
    chosen_name, chosen = _format(name, rows, errors, format)
    tasks: dict[str, Task] = {}
    lines: dict[str, int] = {}
    stem = PurePath(name).name.split(".")[0] or "tasks"
    for line, row in rows:
        try:
            task = chosen.read(row, RowPlace(stem, line))
            _check_texts(task)
            task = _graded_by(task, grader)
        except RowError as error:
            errors.append(LineError(name, line, str(error)))
            continue
        if task.task_id in tasks:
            errors.append(LineError(name, line, f"the id {task.task_id!r} is taken by line {lines[task.task_id]}"))
            continue
        tasks[task.task_id] = task
        lines[task.task_id] = line
    errors.sort(key=lambda error: error.line)
    return LoadedDataset(tuple(tasks.values()), tuple(errors), chosen_name)


def _check_texts(task: Task) -> None:
    """Make sure that messages and tables can hold a task, however its format came to its texts.

    Raises:
        RowError: they cannot.
    """
    check_text(task.task_id, "id")
    check_text(task.family, "family")
    check_text(task.question, "question")
    match task.reference:
        case MathReference(unit=unit) as reference:
            field, texts = "answer", [*reference.values, unit or ""]
        case StdinTests(cases):
            field, texts = "tests", [text for case in cases for text in case]
        case AssertionTests(setup, cases, entry_point):
            field, texts = "tests", [setup, *cases, entry_point]
    for text in texts:
        check_text(text, field)


def _graded_by(task: Task, grader: str | None) -> Task:
    """The task with the grader that the whole file is to have, if any.

    Raises:
        RowError: the grader cannot be had, or the task has no value to grade.
    """
    chosen = grader or task.grader
    if not chosen:
        return task
    if task.task_type != "math":
        raise RowError(f"a code task is graded by its tests, not by the grader {chosen!r}: load it from another file")
    try:
        GRADERS.find(chosen)
    except PluginError as error:
        raise RowError(str(error)) from error
    return replace(task, grader=chosen)


def _decompressed(name: str, content: bytes) -> bytes:
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as unpacked:
            plain = unpacked.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{name}: not a whole gzip file: {error}") from error
    if len(plain) > MAX_BYTES:
        raise DatasetError(f"{name}: more than {MAX_BYTES} bytes after decompression; split the file")
    return plain


def _rows(name: str, content: bytes) -> tuple[list[tuple[int, Row]], list[LineError]]:
    """The JSON objects with their lines, and the lines that are none. Blank lines are neither."""
    rows: list[tuple[int, Row]] = []
    errors: list[LineError] = []
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            parsed: Any = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            errors.append(LineError(name, line, f"not UTF-8: {error.reason} at byte {error.start}"))
        except (ValueError, RecursionError) as error:
            errors.append(LineError(name, line, f"not JSON: {error}"))
        else:
            if isinstance(parsed, dict):
                rows.append((line, parsed))
            else:
                errors.append(LineError(name, line, f"must be a JSON object, got {type(parsed).__name__}"))
    return rows, errors


def _format(name: str, rows: list[tuple[int, Row]], errors: list[LineError], asked: str | None) -> tuple[str, Format]:
    """Name of the format, and the format."""
    if asked is not None:
        try:
            return asked, FORMATS.find(asked)
        except PluginError as error:
            raise DatasetError(f"{name}: {error}") from error
    broken: list[str] = []
    for _, row in rows:
        for candidate, format_ in candidates(broken):
            if format_.matches(row):
                return candidate, format_
    if not rows:
        first = f"; {errors[0]}" if errors else ""
        raise DatasetError(f"{name}: holds no JSON object, one per line is due{first}")
    line, row = rows[0]
    raise DatasetError(
        "; ".join(
            [
                f"{name}:{line}: the keys {', '.join(map(repr, sorted(row)))[:200]} are those of no known format; name one "
                f"of {FORMATS.known()}",
                *dict.fromkeys(broken),
            ]
        )
    )
