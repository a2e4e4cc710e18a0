"""Loads the model that is trained, and says what tensors it has.

Names are those of the Hugging Face checkpoint; a tied output projection is not listed. Weights lie in float32 or, for
DeepSpeed, in the type that is served (DeepSpeed keeps float32 masters itself).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from troupe_learner.weight_file import TensorSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def load_model(folder: str, dtype: torch.dtype) -> nn.Module:
    """A causal model with dropout off: a ratio of log-probabilities must not depend on chance."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    return model


def is_tied(model: Any) -> bool:
    """Whether the output projection is the input embedding, as one parameter."""
    projection, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(projection.weight is embedding.weight)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name; one that has two names (tied) stands under its first."""
    return dict(model.named_parameters())


def tensor_specs(model: nn.Module, served: torch.dtype) -> list[TensorSpec]:
    """What an export holds, in the model's order. Read before ZeRO-3 takes the parameters apart."""
    name = SAFETENSORS_NAMES[served]
    return [TensorSpec(key, tuple(value.shape), name) for key, value in trained_parameters(model).items()]


def bytes_of(tensor: Tensor) -> memoryview:
    """The little-endian, C-contiguous bytes of a tensor on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
