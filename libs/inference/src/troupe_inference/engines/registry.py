"""Engines by name: `vllm`, `remote` and `openai`, and those of plug-ins (group `troupe.engines`).

A plug-in's engine holds weights like vLLM's and is wrapped in the same policy: tokens in, tokens out. What needs no
weights here is an OpenAI-compatible endpoint, or another `Policy` service.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from troupe_contracts.plugins import Registry

from troupe_inference.engines.base import Engine
from troupe_inference.model_folder import ModelFolder

if TYPE_CHECKING:
    from troupe_inference.policy_settings import PolicySettings


class EngineStart(Protocol):
    """A function that starts an engine."""

    async def __call__(
        self, model: ModelFolder, settings: "PolicySettings", on_failure: Callable[[str], None]
    ) -> Engine:
        """A running engine.

        Args:
            model: the folder whose weights it loads.
            settings: those of the service; what the engine has no use for it should refuse.
            on_failure: to be called once, on the event loop, with the reason, when the engine ends without being closed.

        Raises:
            EngineStartError: it cannot run so; the text says what to change.
        """


FORWARDING: Final = ("remote", "openai")
"""Engines that hold no weights: another service does."""
ENGINES: Final[Registry[EngineStart | None]] = Registry("engine", EngineStart, dict.fromkeys(("vllm", *FORWARDING)))
"""Troupe's own are started by `policy_start`, each with settings of its own, and stand here by name only."""
