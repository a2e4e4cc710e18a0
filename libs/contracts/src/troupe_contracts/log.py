"""Structured logs: one JSON line (or one console line) per event, on stderr.

`bind` ties ids to everything that the current task logs from then on; the channel forwards them as metadata
and the server binds them again, so one execution can be followed through all services by its id. Beside ours there is
`trace`, one for each call from outside and each piece of work of a run's own: it travels as W3C `traceparent`, so that
meshes and clients that trace see the same one.

Secrets are left out of every line, and of what an error that nobody caught prints (`redaction`).
"""

import logging
import re
import secrets
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Final, Literal
from urllib.parse import quote, unquote

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from troupe_contracts.redaction import keep_environment_secret, redact, redact_text

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Bound id -> metadata key that carries it from service to service.
ID_KEYS: Final[Mapping[str, str]] = {
    "run": "troupe-run-id",
    "step": "troupe-step",
    "task": "troupe-task-id",
    "execution": "troupe-execution-id",
}
TRACE_KEY: Final = "traceparent"
_MAX_ID_CHARACTERS: Final = 256
_TRACE_PARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE: Final = re.compile(r"[0-9a-f]{32}")


def configure(level: LogLevel = "info", style: LogFormat = "json", service: str = "") -> None:
    """Sets up structlog, and the standard library's root logger with the same output, for this process."""

    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if service:
            event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        # Its own tracebacks show the values of local variables, secret or not.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    last: list[Processor] = [structlog.processors.format_exc_info, _redact_event, renderer]
    keep_environment_secret()
    sys.excepthook = _print_redacted
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Whatever stderr is when a line is written: a program may have put another in its place.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(True)


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    redacted: EventDict = redact(event)
    return redacted


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For an error that nobody caught."""
    print(redact_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def get_logger(**values: object) -> FilteringBoundLogger:
    """A logger; `values` stand in each of its lines."""
    logger: FilteringBoundLogger = structlog.get_logger(**values)
    return logger


def bind(**ids: object) -> None:
    """Ties ids to all that this task, and tasks it starts from now on, log: `bind(run=…, step=…)`."""
    structlog.contextvars.bind_contextvars(**ids)


@contextmanager
def bound(**ids: object) -> Iterator[None]:
    """`bind` for the length of a block."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def new_trace() -> str:
    """The id of a trace that begins here."""
    return secrets.token_hex(16)


def ids_to_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that carries the bound ids. Percent-encoded, since metadata is ASCII."""
    values = structlog.contextvars.get_contextvars()
    carried = [
        (key, _encoded(str(values[name])[:_MAX_ID_CHARACTERS])) for name, key in ID_KEYS.items() if name in values
    ]
    if _TRACE.fullmatch(trace := str(values.get("trace", ""))):
        # Not sampled: no span of ours is kept anywhere.
        carried.append((TRACE_KEY, f"00-{trace}-{secrets.token_hex(8)}-00"))
    return tuple(carried)


@lru_cache(maxsize=4096)
def _encoded(text: str) -> str:
    """Remembered: the calls of an execution carry the same ids."""
    return quote(text)


def metadata_to_ids(metadata: Mapping[str, str | bytes]) -> dict[str, str]:
    """The ids that `ids_to_metadata` sent."""
    found: dict[str, str] = {}
    for name, key in ID_KEYS.items():
        value = metadata.get(key)
        if isinstance(value, str):
            found[name] = unquote(value)[:_MAX_ID_CHARACTERS]
    parent = metadata.get(TRACE_KEY)
    if isinstance(parent, str) and (trace := _TRACE_PARENT.fullmatch(parent)):
        found["trace"] = trace[1]
    return found
