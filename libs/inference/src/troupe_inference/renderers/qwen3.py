"""Qwen3 with thinking off.

Departures from the model's own chat template:

- the empty think block, which the template puts after the last assistant header and drops from earlier
  turns, stays where it was sampled after: a transcript is append-only;
- `<think>`, `<tool_call>` and the like inside a message are plain text, as every other control token is;
  the template lets them become tokens. A model that samples `<tool_call>` still gives that token and its
  text;
- a sampled `<|endoftext|>` ends the turn as `<|im_end|>` does, and stays in the transcript.
"""

from collections.abc import Sequence
from itertools import groupby

from tokenizers import Tokenizer

from troupe_inference.renderers.base import RendererError
from troupe_inference.renderers.plain_text import Control, Piece, TemplateEncoder
from troupe_inference.transcript import Message, Role

_START = Control("<|im_start|>")
_END = Control("<|im_end|>")
_ASSISTANT: tuple[Piece, ...] = (
    _START,
    "assistant\n",
    Control("<think>"),
    "\n\n",
    Control("</think>"),
    "\n\n",
)


class Qwen3Renderer:
    """Implements `base.Renderer`."""

    name = "qwen3"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encoder = TemplateEncoder(tokenizer)
        self.control_token_ids = self._encoder.control_token_ids
        missing = [token.content for token in (_START, _END) if self._encoder.control(token.content) is None]
        if missing:
            raise RendererError(
                f"the tokenizer has no added token {' and no '.join(missing)}: the renderer qwen3 needs a "
                "tokenizer of the Qwen family"
            )
        stops = (self._encoder.control(token) for token in ("<|im_end|>", "<|endoftext|>"))
        self.stop_token_ids = tuple(token_id for token_id in stops if token_id is not None)

    def open_turn(self, messages: Sequence[Message], *, first: bool) -> list[int]:
        pieces: list[Piece] = [] if first else ["\n"]
        for role, group in groupby(messages, key=lambda message: message.role):
            if role is Role.TOOL:
                pieces += (_START, "user")
                for message in group:
                    pieces += (
                        "\n",
                        Control("<tool_response>"),
                        f"\n{message.content}\n",
                        Control("</tool_response>"),
                    )
                pieces += (_END, "\n")
            else:
                for message in group:
                    pieces += (_START, f"{role.value}\n{message.content}", _END, "\n")
        pieces += _ASSISTANT
        return self._encoder.encode(pieces)

    def close_turn(self) -> list[int]:
        return [self.stop_token_ids[0]]

    def text(self, token_ids: Sequence[int]) -> str:
        return self._encoder.decode(token_ids)
