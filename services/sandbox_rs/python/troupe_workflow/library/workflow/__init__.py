"""The scripting library: agents, nodes that combine them, and workflows that run them.

Scripts import from here, from `workflow.nodes` and from `utils.environments.math_env`. Importing starts
nothing.
"""

from .agents import AgentNode
from .channel import AgentRefused, ChannelClosed
from .debate import DebateNode
from .ensemble import EnsembleNode
from .graph import AgentGraph, create_simple_chain
from .messages import Context, Message, MessageType
from .node import WorkflowNode
from .reflection import ReflectionNode
from .router import RouterNode, create_keyword_router
from .tools import ToolRegistry
from .workflows import ConditionalWorkflow, LoopWorkflow, Workflow

__all__ = [
    "AgentGraph",
    "AgentNode",
    "AgentRefused",
    "ChannelClosed",
    "ConditionalWorkflow",
    "Context",
    "DebateNode",
    "EnsembleNode",
    "LoopWorkflow",
    "Message",
    "MessageType",
    "ReflectionNode",
    "RouterNode",
    "ToolRegistry",
    "Workflow",
    "WorkflowNode",
    "create_keyword_router",
    "create_simple_chain",
]
