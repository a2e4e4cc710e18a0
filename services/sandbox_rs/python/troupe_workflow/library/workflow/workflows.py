"""Nodes in a line: all of them, those whose condition holds, or again and again."""

from collections.abc import Callable, Sequence
from typing import Any

from . import checks
from .messages import Context, Message, MessageType
from .node import WorkflowNode
from .runs import Runnable, last_message

Condition = Callable[[Context], Any]


class Workflow(Runnable):
    """Runs its nodes in order; each sees the question and what the earlier ones said. Stops at the first ERROR.

    `ai_client`, `tokenizer`, `server_address`, `ppo_trainer_config` and `enable_thinking` are accepted and
    have no effect: the sandbox routes all turns.
    """

    def __init__(
        self,
        name: str = "workflow",
        ai_client: object = None,
        tokenizer: object = None,
        server_address: object = None,
        ppo_trainer_config: object = None,
        enable_thinking: bool = False,
    ) -> None:
        super().__init__(name)
        checks.flag("Workflow", "enable_thinking", enable_thinking)
        self.nodes: list[WorkflowNode] = []

    def add_node(self, node: WorkflowNode) -> "Workflow":
        checks.instance(f"{type(self).__name__}.add_node", "node", node, WorkflowNode)
        self.nodes.append(node)
        return self

    def add_nodes(self, nodes: Sequence[WorkflowNode]) -> "Workflow":
        checks.instances(f"{type(self).__name__}.add_nodes", "nodes", nodes, WorkflowNode, at_least=0)
        for node in nodes:
            self.add_node(node)
        return self

    def _execute(self, context: Context) -> Message:
        return self._run_nodes(context)

    def _run_nodes(self, context: Context) -> Message:
        if not self.nodes:
            raise ValueError(f"workflow {self.name} has no nodes: add_node first")
        for index, node in enumerate(self.nodes):
            if self._is_due(index, context):
                result = node(context)
                if result.message_type == MessageType.ERROR:
                    return result
        return last_message(context)

    def _is_due(self, index: int, context: Context) -> bool:
        return True


class ConditionalWorkflow(Workflow):
    """Skips each node whose condition on the context does not hold."""

    def __init__(self, name: str = "conditional_workflow") -> None:
        super().__init__(name)
        self.conditions: list[Condition | None] = []

    def add_node(self, node: WorkflowNode, condition: Condition | None = None) -> "ConditionalWorkflow":
        checks.function("ConditionalWorkflow.add_node", "condition", condition, optional=True)
        super().add_node(node)
        self.conditions.append(condition)
        return self

    def _is_due(self, index: int, context: Context) -> bool:
        condition = self.conditions[index]
        return condition is None or bool(condition(context))


class LoopWorkflow(Workflow):
    """Runs all its nodes, and again while the loop condition holds, at most `max_iterations` times."""

    def __init__(self, name: str = "loop_workflow", max_iterations: int = 10) -> None:
        super().__init__(name)
        checks.count("LoopWorkflow", "max_iterations", max_iterations, at_least=1)
        self.max_iterations = max_iterations
        self.loop_condition: Condition | None = None

    def set_loop_condition(self, condition: Condition) -> "LoopWorkflow":
        """`condition(context)` is asked after each round; true means another one."""
        checks.function("LoopWorkflow.set_loop_condition", "condition", condition)
        self.loop_condition = condition
        return self

    def _execute(self, context: Context) -> Message:
        if self.loop_condition is None:
            raise ValueError(f"loop workflow {self.name} has no loop condition: set_loop_condition first")
        for _ in range(self.max_iterations):
            result = self._run_nodes(context)
            if result.message_type == MessageType.ERROR or not self.loop_condition(context):
                break
        return result
