"""A small Qwen3 in plain torch: fast on two cores, and tensor for tensor the model of transformers'
Qwen3ForCausalLM.

Why not transformers' own class: at this size most of its time is Python, and the cold start counts in
seconds. Parameter names are those of a Hugging Face checkpoint; a test compares the two models' logits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; 0.95 million parameters as they stand."""

    vocabulary: int = 640
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head_size: int = 32
    feed_forward: int = 384
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6


@dataclass
class LayerCache:
    """Keys and values of one layer, [batch, key_value_heads, context, head_size]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.key_value_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.key_value_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_epsilon)
        self.k_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_epsilon)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, cache: LayerCache | None, start: int) -> Tensor:
        batch, length, _ = x.shape
        head = self.shape.head_size
        q = _rotate(self.q_norm(self.q_proj(x).view(batch, length, -1, head)), rope).transpose(1, 2)
        k = _rotate(self.k_norm(self.k_proj(x).view(batch, length, -1, head)), rope).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, head).transpose(1, 2)
        if cache is not None:
            cache.keys[:, :, start : start + length] = k
            cache.values[:, :, start : start + length] = v
            k, v = cache.keys[:, :, : start + length], cache.values[:, :, : start + length]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, cache: LayerCache | None, start: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, start)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """The layers, under the name `model` that checkpoints use."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)


class Policy(nn.Module):
    """The language model. Embeddings are untied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        half = shape.head_size // 2
        frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(shape.context, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("rope_table", torch.stack([angles.cos(), angles.sin()]).float(), persistent=False)

    def initialise(self, seed: int) -> None:
        """Draws new weights: normal with deviation 0.02, norms at 1."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            else:
                nn.init.ones_(weight)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        caches: list[LayerCache] | None = None,
        start: int = 0,
    ) -> Tensor:
        """Final hidden states, [batch, length, hidden].

        `tokens` and `positions` are [batch, length]; `mask` is true where a query (third dimension) may see
        a key (fourth). With caches, the tokens are written at index `start` and see all that stands before.
        """
        x = self.model.embed_tokens(tokens)
        table: Any = self.rope_table
        rope = table[:, positions]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, rope, mask, None if caches is None else caches[index], start)
        out: Tensor = self.model.norm(x)
        return out

    def new_caches(self, batch: int, context: int) -> list[LayerCache]:
        """Empty caches for a batch."""
        size = (batch, self.shape.key_value_heads, context, self.shape.head_size)
        return [LayerCache(torch.zeros(size), torch.zeros(size)) for _ in range(self.shape.layers)]


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding of [batch, length, heads, head_size] by the halves' convention of Qwen and Llama."""
    cos, sin = rope[0].unsqueeze(2), rope[1].unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
