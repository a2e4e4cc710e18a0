"""When each part of a step's rollouts began and ended: shows that designs, executions and turns overlap.

Spans are kept in memory while a step rolls and written beside its trees in the trace event format of Chrome and Perfetto.
They are for people: nothing that is trained on is a function of them.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class SpanKind(StrEnum):
    DESIGN = "design"
    """From the request for a task's designs to one of them."""
    QUEUE = "queue"
    """An execution waits to be admitted."""
    EXECUTION = "execution"
    """A script runs."""
    TURN = "turn"
    """The engine answers one agent."""
    GRADING = "grading"


@dataclass(frozen=True, slots=True)
class Span:
    """One part. Times are seconds since the timeline began."""

    kind: SpanKind
    task_id: str
    lane: str
    """Spans of one lane follow each other; those of different lanes may overlap."""
    name: str
    begin: float
    end: float


@dataclass(slots=True)
class Timeline:
    """The spans of one step, in the order in which they ended."""

    spans: list[Span] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter)

    def lane(self, task_id: str, name: str) -> "Lane":
        """Where the spans of one thing go."""
        return Lane(self, task_id, name)

    def now(self) -> float:
        """Seconds since the timeline began."""
        return time.perf_counter() - self._begun

    def seconds(self, kind: SpanKind) -> float:
        """Seconds of all spans of a kind together, however many ran at the same time."""
        return sum(span.end - span.begin for span in self.spans if span.kind is kind)


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane of a timeline."""

    timeline: Timeline
    task_id: str
    name: str

    def within(self, name: str) -> "Lane":
        """A lane for a part of this one that may overlap with its other parts."""
        return Lane(self.timeline, self.task_id, f"{self.name} · {name}")

    def add(self, kind: SpanKind, name: str, begin: float) -> None:
        """Record what began then and ends now."""
        self.timeline.spans.append(Span(kind, self.task_id, self.name, name, begin, self.timeline.now()))

    @contextlib.contextmanager
    def span(self, kind: SpanKind, name: str) -> Iterator[None]:
        """Record the block, unless it fails: what failed leaves no trace."""
        begin = self.timeline.now()
        yield
        self.add(kind, name, begin)


def write_timeline(path: Path, timeline: Timeline) -> None:
    """Write the spans as trace events: a task is a process, a lane a thread, times are microseconds."""
    tasks = {task_id: number for number, task_id in enumerate(dict.fromkeys(span.task_id for span in timeline.spans))}
    lanes = {lane: n for n, lane in enumerate(dict.fromkeys((span.task_id, span.lane) for span in timeline.spans))}
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": number, "args": {"name": task_id}}
        for task_id, number in tasks.items()
    ]
    events += [
        {"ph": "M", "name": "thread_name", "pid": tasks[task_id], "tid": number, "args": {"name": lane}}
        for (task_id, lane), number in lanes.items()
    ]
    events += [
        {
            "ph": "X",
            "cat": span.kind,
            "name": span.name,
            "pid": tasks[span.task_id],
            "tid": lanes[span.task_id, span.lane],
            "ts": round(span.begin * 1e6),
            "dur": round((span.end - span.begin) * 1e6),
        }
        for span in timeline.spans
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"traceEvents": events}))
