"""Encodes text so that nothing in it becomes a control token.

A tokenizer recognises its added tokens (`<|im_end|>`, `<think>`, …) anywhere in a text. Text that comes
from users, tools and scripts must not have that power, so it is encoded by a twin of the tokenizer from
which every added token is removed: what looks like one is then spelled with ordinary tokens.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from troupe_inference.renderers.base import RendererError


@dataclass(frozen=True, slots=True)
class Control:
    """A control token in a template; plain text with a tokenizer that has no such token."""

    content: str


Piece = Control | str
_SHORT_CHARACTERS: Final = 24


class TemplateEncoder:
    """Encodes templates made of control tokens and text, for one tokenizer.

    Text between two control tokens is encoded as one string, which is how a tokenizer treats the rendered
    template; so for text without control tokens the result equals the tokenizer's own encoding of that
    template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._controls = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        self._twin = _without_added_tokens(tokenizer)
        self.control_token_ids = frozenset(self._controls.values())
        # The template's own text is the same in every turn.
        self._encode_short = functools.lru_cache(maxsize=512)(self._encode_plain)

    def control(self, content: str) -> int | None:
        """The id of a control token, None if the tokenizer has none of that name."""
        return self._controls.get(content)

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a template."""
        token_ids: list[int] = []
        pending: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                pending.append(piece)
            elif piece.content in self._controls:
                self._flush(pending, token_ids)
                token_ids.append(self._controls[piece.content])
            else:
                pending.append(piece.content)
        self._flush(pending, token_ids)
        return token_ids

    def _flush(self, pending: list[str], token_ids: list[int]) -> None:
        text = "".join(pending)
        pending.clear()
        if text:
            short = len(text) <= _SHORT_CHARACTERS
            token_ids.extend(self._encode_short(text) if short else self._encode_plain(text))

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._twin.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A twin that knows no added token, neither as such nor as an entry of its vocabulary."""
    description = json.loads(tokenizer.to_str())
    added = {token["content"] for token in description["added_tokens"]}
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = None
    description["padding"] = None
    model = description["model"]
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        raise RendererError(
            f"the tokenizer's model is {model.get('type')}: only those whose vocabulary is a table (BPE, "
            "WordPiece, WordLevel) can encode text without control tokens"
        )
    if model.get("unk_token") in added:
        raise RendererError(
            f"the tokenizer encodes unknown text as the control token {model['unk_token']!r}: use a byte-level one"
        )
    model["vocab"] = {token: token_id for token, token_id in vocabulary.items() if token not in added}
    twin: Tokenizer = Tokenizer.from_str(json.dumps(description))
    return twin
