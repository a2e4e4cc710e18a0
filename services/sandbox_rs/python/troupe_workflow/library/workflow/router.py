"""The node that hands a question to one of several others."""

from collections.abc import Callable, Mapping
from typing import Any

from . import checks
from .messages import Context, Message
from .node import WorkflowNode


class RouterNode(WorkflowNode):
    """Runs the route that `routing_func(context)` names, or the default route if there is none of that name."""

    def __init__(
        self,
        name: str,
        routes: Mapping[str, WorkflowNode],
        routing_func: Callable[[Context], str],
        default_route: str = "default",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        checks.mapping("RouterNode", "routes", routes)
        for route, node in routes.items():
            checks.name("RouterNode", "a route's name", route)
            checks.instance("RouterNode", f"routes[{route!r}]", node, WorkflowNode)
        checks.function("RouterNode", "routing_func", routing_func)
        checks.choice("RouterNode", "default_route", default_route, list(routes))
        self.routes = dict(routes)
        self.routing_func = routing_func
        self.default_route = default_route

    def process(self, context: Context) -> Message:
        wanted = self.routing_func(context)
        route = wanted if wanted in self.routes else self.default_route
        result = self.routes[route](context.branch())
        metadata = {**result.metadata, "routed_from": self.name, "route_taken": route}
        return Message(result.content, result.message_type, metadata)


def create_keyword_router(
    name: str,
    keyword_routes: Mapping[str, WorkflowNode],
    default_node: WorkflowNode,
    case_sensitive: bool = False,
) -> RouterNode:
    """A router that takes the first keyword which stands in the latest message."""
    checks.mapping("create_keyword_router", "keyword_routes", keyword_routes)
    checks.instance("create_keyword_router", "default_node", default_node, WorkflowNode)
    checks.flag("create_keyword_router", "case_sensitive", case_sensitive)
    keywords = list(keyword_routes)

    def first_keyword(context: Context) -> str:
        latest = context.get_latest_message()
        text = latest.text if latest else ""
        if not case_sensitive:
            text = text.lower()
        return next((word for word in keywords if (word if case_sensitive else word.lower()) in text), "default")

    return RouterNode(name, {**keyword_routes, "default": default_node}, first_keyword)
