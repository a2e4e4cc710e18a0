"""All nodes, under the path that scripts import them from."""

from .agents import AgentNode
from .debate import DebateNode
from .ensemble import EnsembleNode
from .node import WorkflowNode
from .reflection import ReflectionNode
from .router import RouterNode, create_keyword_router

__all__ = [
    "AgentNode",
    "DebateNode",
    "EnsembleNode",
    "ReflectionNode",
    "RouterNode",
    "WorkflowNode",
    "create_keyword_router",
]
