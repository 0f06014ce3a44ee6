"""The meaning of a low-rank predictor's scores, in plain torch: of weights as they were trained,
or in 8 bits.

T tokens, N neurons, E experts, r the rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
Scales = tuple[Tensor, Tensor]  # what 1 stands for in each row of fc1 and of fc2, float32


def float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [rows, width] -> its values [rows, width] float8 and each row's scale [rows] float32,
    such that the row's largest value is the largest there is. A row of zeros has a scale of 1."""
    largest = weight.abs().amax(1).float()
    scale = torch.where(largest > 0, largest / torch.finfo(FLOAT8).max, 1.0)
    return (weight.float() / scale[:, None]).to(FLOAT8), scale


def whole(values: Tensor, scale: Tensor) -> Tensor:
    """The way back from `float8`, but for what rounding took: [rows, width] float32."""
    return values.float() * scale[:, None]


def low_rank_scores(
    residual: Tensor, fc1: Tensor, fc2: Tensor, scales: Scales | None = None
) -> Tensor:
    """What `reference.predict` holds against the threshold: [T, N] float32."""
    scale1, scale2 = scales or (1.0, 1.0)
    return F.linear(_hidden(residual, fc1, scale1), fc2.float()) * scale2


def expert_scores(
    residual: Tensor, fc1: Tensor, fc2: Tensor, num_experts: int, scales: Scales | None = None
) -> Tensor:
    """What `reference.predict_experts` holds against the threshold: [T, E * N] float32."""
    scale1, scale2 = scales or (1.0, 1.0)
    hidden, rank = _hidden(residual, fc1, scale1), fc2.shape[1]
    per_expert = hidden.view(len(residual), num_experts, rank).transpose(0, 1)
    scores = per_expert @ fc2.float().view(num_experts, -1, rank).transpose(1, 2)  # [E, T, N]
    return scores.transpose(0, 1).flatten(1) * scale2


def _hidden(residual: Tensor, fc1: Tensor, scale: Tensor | float) -> Tensor:
    """Of the residual's type, as published, though summed in float32: [T, r] float32."""
    sums = F.linear(residual.float(), fc1.float()) * scale
    return sums.relu().to(residual.dtype).float()


def above(scores: Tensor, threshold: float | Tensor) -> Tensor:
    """scores [T, N] against one threshold, or one a token [T]."""
    return scores > (threshold[:, None] if isinstance(threshold, Tensor) else threshold)
