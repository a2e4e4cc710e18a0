"""Nodes in a graph: edges say what runs next, and independent branches run side by side.

A step runs all nodes that are due. A node that another due node can still reach waits for it, unless they
form a loop: so branches of unequal length meet in one visit.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import checks
from .concurrency import run_all
from .messages import Context, Message, MessageType
from .node import WorkflowNode
from .runs import Runnable, last_message

Condition = Callable[[Context], Any]
Router = Callable[[Context], Any]


@dataclass(frozen=True)
class Edge:
    """Leads from node to node where its condition on the context holds, always without one."""

    source: str
    target: str
    condition: Condition | None = None

    def is_open(self, context: Context) -> bool:
        return self.condition is None or bool(self.condition(context))


class AgentGraph(Runnable):
    """Runs nodes along edges.

    It begins at the entry point and ends when a finish point has run, nothing is due, or `max_steps` nodes
    have run. It stops at the first ERROR. A branch's context holds what was said before it forked, and all is
    there where branches meet.
    """

    def __init__(self, name: str = "agent_graph", max_steps: int = 50) -> None:
        super().__init__(name)
        checks.count("AgentGraph", "max_steps", max_steps, at_least=1)
        self.max_steps = max_steps
        self.nodes: dict[str, WorkflowNode] = {}
        self.edges: list[Edge] = []
        self.routers: dict[str, Router] = {}
        self.entry_point: str | None = None
        self.finish_points: list[str] = []

    def add_node(self, name: str, node: WorkflowNode) -> "AgentGraph":
        checks.name("AgentGraph.add_node", "name", name)
        checks.instance("AgentGraph.add_node", "node", node, WorkflowNode)
        self.nodes[name] = node
        return self

    def add_edge(self, source: str, target: str, condition: Condition | None = None) -> "AgentGraph":
        self._check_known("add_edge", "source", source)
        self._check_known("add_edge", "target", target)
        checks.function("AgentGraph.add_edge", "condition", condition, optional=True)
        self.edges.append(Edge(source, target, condition))
        return self

    def add_conditional_edges(self, source: str, routing_func: Router) -> "AgentGraph":
        """Routes from `source` by a function, in place of its edges.

        `routing_func(context)` names the node, or a list of nodes, that comes next. A name that no node has
        (END, for example) ends the branch.
        """
        self._check_known("add_conditional_edges", "source", source)
        checks.function("AgentGraph.add_conditional_edges", "routing_func", routing_func)
        self.routers[source] = routing_func
        return self

    def set_entry_point(self, name: str) -> "AgentGraph":
        self._check_known("set_entry_point", "name", name)
        self.entry_point = name
        return self

    def set_finish_point(self, name: str) -> "AgentGraph":
        self._check_known("set_finish_point", "name", name)
        if name not in self.finish_points:
            self.finish_points.append(name)
        return self

    def _check_known(self, method: str, argument: str, name: object) -> None:
        checks.name(f"AgentGraph.{method}", argument, name)
        if name not in self.nodes:
            known = ", ".join(self.nodes) or "none"
            raise ValueError(
                f"AgentGraph.{method}: {argument} {name!r} is no node (there are: {known}); add_node first"
            )

    def _execute(self, context: Context) -> Message:
        if self.entry_point is None:
            raise ValueError(f"graph {self.name} has no entry point: set_entry_point first")
        if not self.finish_points:
            raise ValueError(f"graph {self.name} has no finish point: set_finish_point first")
        due = [self.entry_point]
        steps_left = self.max_steps
        while due and steps_left:
            batch = self._ready(due)[:steps_left]
            steps_left -= len(batch)
            results = self._run_batch(batch, context)
            for name, result in zip(batch, results, strict=True):
                if result.message_type == MessageType.ERROR or name in self.finish_points:
                    return result
            due = [name for name in due if name not in batch]
            for name in batch:
                due += [target for target in self._after(name, context) if target not in due]
        return last_message(context)

    def _run_batch(self, batch: list[str], context: Context) -> list[Message]:
        """Runs nodes side by side, then adds what they said to the context in the order of the batch."""
        if len(batch) == 1:
            return [self.nodes[batch[0]](context)]
        branches = [context.branch() for _ in batch]
        results = run_all([partial(self.nodes[name], branch) for name, branch in zip(batch, branches, strict=True)])
        for branch, result in zip(branches, results, strict=True):
            context.state.update(branch.state)
            context.add_message(result)
        return results

    def _after(self, name: str, context: Context) -> list[str]:
        if name in self.routers:
            named = self.routers[name](context)
            targets = list(named) if isinstance(named, list | tuple) else [named]
            return [target for target in targets if target in self.nodes]
        return [edge.target for edge in self.edges if edge.source == name and edge.is_open(context)]

    def _ready(self, due: list[str]) -> list[str]:
        """The due nodes that no other due node leads to, loops apart; never empty, since loops apart edges order nodes."""
        reach = {name: self._reachable(name) for name in due}
        return [
            name
            for name in due
            if not any(name in reach[other] and other not in reach[name] for other in due if other != name)
        ]

    def _reachable(self, start: str) -> set[str]:
        found: set[str] = set()
        open_ends = [start]
        while open_ends:
            source = open_ends.pop()
            targets = {edge.target for edge in self.edges if edge.source == source} - found
            found |= targets
            open_ends += targets
        return found


def create_simple_chain(*nodes: tuple[str, WorkflowNode]) -> AgentGraph:
    """A graph that runs the (name, node) pairs one after the other."""
    graph = AgentGraph()
    for position, pair in enumerate(nodes):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"create_simple_chain: argument {position + 1} must be a (name, node) pair, got {pair!r:.80}"
            )
        graph.add_node(*pair)
    names = [name for name, _ in nodes]
    if names:
        graph.set_entry_point(names[0]).set_finish_point(names[-1])
    for source, target in itertools.pairwise(names):
        graph.add_edge(source, target)
    return graph
