"""Renderers: one small module per model family, found by name."""

from collections.abc import Callable, Mapping
from typing import Final

from tokenizers import Tokenizer

from troupe_inference.renderers.base import Renderer, RendererError
from troupe_inference.renderers.qwen3 import Qwen3Renderer

RENDERERS: Final[Mapping[str, Callable[[Tokenizer], Renderer]]] = {
    "qwen3": Qwen3Renderer,
}

__all__ = ["RENDERERS", "Renderer", "RendererError", "get_renderer"]


def get_renderer(name: str, tokenizer: Tokenizer) -> Renderer:
    """The renderer of that name for a tokenizer.

    Raises:
        RendererError: there is no such renderer, or it cannot work with the tokenizer.
    """
    if name not in RENDERERS:
        raise RendererError(f"there is no renderer {name!r}; known: {', '.join(sorted(RENDERERS))}")
    return RENDERERS[name](tokenizer)
