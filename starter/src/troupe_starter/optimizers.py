"""Muon for hidden matrices, AdamW for the rest: what makes the small policy learn to copy within minutes.

Muon orthogonalises the momentum of each matrix (Jordan et al. 2024); its step is scaled to the size that
AdamW's would have (Liu et al. 2025, "match RMS"). Matrices of one shape are orthogonalised together: one at
a time costs more than the backward pass at this size.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from troupe_starter.model import Policy

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 3


class Muon:
    """Updates matrices in place from their gradients."""

    def __init__(self, matrices: Iterable[Tensor]) -> None:
        self._groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            self._groups[tuple(matrix.shape)].append(matrix)
        self._momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for shape, group in self._groups.items():
            gradients = torch.stack([_gradient(matrix) for matrix in group])
            momentum = self._momenta[shape].lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalise(gradients.lerp(momentum, MOMENTUM))
            scale = learning_rate * 0.2 * max(shape) ** 0.5
            for matrix, update in zip(group, updates, strict=True):
                matrix.sub_(update, alpha=scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values about 1, by Newton-Schulz. [count, rows, columns]"""
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if transposed else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if transposed else x


def hidden_matrices(policy: Policy) -> list[Tensor]:
    """The matrices within the layers: Muon's."""
    return [weight for weight in policy.model.layers.parameters() if weight.dim() == 2]


def other_weights(policy: Policy) -> list[Tensor]:
    """Embeddings, output head and norms: AdamW's."""
    muons = {id(weight) for weight in hidden_matrices(policy)}
    return [weight for weight in policy.parameters() if id(weight) not in muons]


def _gradient(matrix: Tensor) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad
