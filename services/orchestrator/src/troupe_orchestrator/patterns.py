"""The pattern of a design, read off what was executed and not off its label. Pure.

A pattern is `single`, or a sum of parts in a fixed order: `router`, `graph`, `loop`, `chain`, `vote`, `debate`,
`reflection`; a chain that ends in a vote is `chain+vote`. `none` is a run without any node.

- `vote`, `debate`, `reflection`, `router`: a node of that type ran.
- `chain`: two or more different nodes ran one after another at the top.
- `loop`: one of them ran again.
- `graph`: some of them ran at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_ORDER = ("router", "graph", "loop", "chain", "vote", "debate", "reflection")
_PART_OF_TYPE = {
    "RouterNode": "router",
    "EnsembleNode": "vote",
    "DebateNode": "debate",
    "ReflectionNode": "reflection",
}
_AGENT = "AgentNode"


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """A node of the executed graph was entered or left."""

    entered: bool
    """False: left."""
    visit_id: int
    parent_visit_id: int
    """0 at the top."""
    node: str
    node_type: str
    """Class name; of a class that the script defined, its own."""
    result_type: str = ""


def pattern_of(events: Sequence[NodeEvent]) -> str:
    """The pattern of one execution.

    Args:
        events: in the order in which they happened.
    """
    visits = {event.visit_id: event for event in events if event.entered}
    if not visits:
        return "none"
    parts = {_PART_OF_TYPE[visit.node_type] for visit in visits.values() if visit.node_type in _PART_OF_TYPE}
    transparent = {
        visit.parent_visit_id for visit in visits.values() if _is_transparent(visits.get(visit.parent_visit_id))
    }
    top = [visit for visit in visits.values() if visit.visit_id not in transparent and _is_at_top(visit, visits)]
    names = [(visit.node, visit.node_type) for visit in top]
    if len(set(names)) > 1:
        parts.add("chain")
    if len(set(names)) < len(names):
        parts.add("loop")
    if _overlap(events, {visit.visit_id for visit in top}):
        parts.add("graph")
        parts.discard("chain")
    return "+".join(part for part in _ORDER if part in parts) or "single"


def _is_transparent(visit: NodeEvent | None) -> bool:
    """Whether a node is a script's own: what runs within it counts as if it ran in its place."""
    return visit is not None and visit.node_type != _AGENT and visit.node_type not in _PART_OF_TYPE


def _is_at_top(visit: NodeEvent, visits: dict[int, NodeEvent]) -> bool:
    # Bounded by the number of visits: a forged cycle of parents ends, too.
    for _ in range(len(visits)):
        parent = visits.get(visit.parent_visit_id)
        if parent is None:
            return True
        if not _is_transparent(parent):
            return False
        visit = parent
    return False


def _overlap(events: Sequence[NodeEvent], visit_ids: set[int]) -> bool:
    running: set[int] = set()
    for event in events:
        if event.visit_id in visit_ids:
            if event.entered:
                running.add(event.visit_id)
                if len(running) > 1:
                    return True
            else:
                running.discard(event.visit_id)
    return False
