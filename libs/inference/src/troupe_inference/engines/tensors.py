"""Bytes of a tensor to a torch tensor, without a copy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from troupe_inference.engines.base import Tensor

if TYPE_CHECKING:
    import torch

# safetensors' names of the types that weights come in: bytes of one value, and torch's name.
DTYPES: Final[Mapping[str, tuple[int, str]]] = {
    "F64": (8, "float64"),
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
}


def to_torch(tensor: Tensor) -> "torch.Tensor":
    """A view of the tensor's bytes; the bytes must outlive it and are not to be changed."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[tensor.spec.dtype][1])
    content = tensor.content if isinstance(tensor.content, bytearray) else bytearray(tensor.content)
    return torch.frombuffer(content, dtype=dtype).reshape(tensor.spec.shape)
