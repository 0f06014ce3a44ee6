"""The small parts of a decoder layer that hold weights. Knows no batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import Rope


def weight(*shape: int) -> nn.Parameter:
    """An inference weight: allocated where the model is built, filled by the loader."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class Linear(nn.Module):
    """`x @ weight.T`, no bias; [out, in] as checkpoints store it.

    `scale` [out] float32 is what 1 stands for in each row, where the weight is float8.
    """

    scale: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = weight(out_features, in_features)
        self.register_parameter("scale", None)


class Norm(nn.Module):
    """The weight of a root-mean-square norm."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = weight(hidden_size)
        self.eps = eps


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each rotated pair, after the config's rescaling: [D / 2] float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def _llama3(frequencies: Tensor, rope: Rope) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_max_positions / wavelengths
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = ((turns - rope.low_freq_factor) / span).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / rope.factor


def rope_tables(rope: Rope, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position: [positions, D / 2] float32 each."""
    positions = torch.arange(num_positions, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, rope_frequencies(rope, head_dim))
    return angles.cos(), angles.sin()
