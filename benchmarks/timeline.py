"""Draws one task of a step: when its designs were sampled, its executions ran and its agents' turns were in the engine.

    python benchmarks/timeline.py .troupe/data/runs/RUN/steps/000001/timeline-1.json timeline.png

The task with the most turns that overlap is drawn; the numbers it prints are over all tasks. The JSON file itself
opens in Perfetto and chrome://tracing.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

COLOURS = {"design": "#b35900", "queue": "#dddddd", "execution": "#9dbfe0", "turn": "#1f4e79", "grading": "#6a9a4f"}


@dataclass(frozen=True)
class Span:
    """One part of a task, in seconds since the step began."""

    kind: str
    lane: str
    begin: float
    end: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timeline", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    tasks = read(options.timeline)
    early = sum(begins_before_the_last_design(spans) for spans in tasks.values())
    print(f"{early} of {len(tasks)} tasks ran an execution before their last design was sampled")
    together = max(overlap([span for spans in tasks.values() for span in spans if span.kind == "turn"]), default=0)
    print(f"at most {together} turns were in the engine at once")
    inside = {name: members_together(spans) for name, spans in tasks.items()}
    print(f"executions whose own agents' turns overlapped: {sum(inside.values())}")
    chosen = max(tasks, key=lambda name: (begins_before_the_last_design(tasks[name]), inside[name]))
    draw(options.picture, chosen, tasks[chosen])


def read(path: Path) -> dict[str, list[Span]]:
    """Spans by task."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tasks: dict[str, list[Span]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lane = lanes[event["pid"], event["tid"]]
            begin, end = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            tasks[names[event["pid"]]].append(Span(event["cat"], lane, begin, end))
    return tasks


def begins_before_the_last_design(spans: list[Span]) -> bool:
    executions = [span.begin for span in spans if span.kind == "execution"]
    return bool(executions) and min(executions) < max(span.end for span in spans if span.kind == "design")


def members_together(spans: list[Span]) -> int:
    """Executions with two turns at the same time."""
    executions: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.kind == "turn":
            executions[span.lane.rpartition(" · ")[0]].append(span)
    return sum(max(overlap(turns)) > 1 for turns in executions.values())


def overlap(spans: list[Span]) -> list[int]:
    """How many are under way whenever one begins."""
    return [sum(other.begin <= span.begin < other.end for other in spans) for span in spans]


def draw(path: Path, name: str, spans: list[Span]) -> None:
    # Imported here: it takes two seconds, which a wrong argument should not cost.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lanes = sorted({span.lane for span in spans}, key=lambda lane: [int(p) if p.isdigit() else p for p in lane.split()])
    figure = Figure(figsize=(10, 0.22 * len(lanes) + 1.2), layout="constrained")
    axes = figure.subplots()
    for span in spans:
        axes.barh(lanes.index(span.lane), span.end - span.begin, left=span.begin, height=0.8, color=COLOURS[span.kind])
    axes.set_yticks(range(len(lanes)), lanes, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds since the step began (task {name})")
    axes.legend(handles=[Patch(color=colour, label=kind) for kind, colour in COLOURS.items()], fontsize=7)
    figure.savefig(path, dpi=130)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
