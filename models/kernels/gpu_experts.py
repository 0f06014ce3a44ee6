"""All neurons of the experts that tokens were sent to, on a GPU: tokens sorted by expert, and one
grouped product for all. Nothing here asks the host how many tokens an expert has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import Routing
from ..config import Activation
from . import gpu_gated
from .reference_predict import Scales


@dataclass(frozen=True, slots=True)
class Sorted:
    """Every pair of a token and an expert it was sent to, by expert and then by token."""

    token: Tensor  # [T * k] int64
    expert: Tensor  # [T * k] int64
    ends: Tensor  # [E] int32, of each expert's pairs
    places: Tensor  # [T, k] int64, of a token's pairs


def by_expert(routing: Routing) -> Sorted:
    num_tokens, num_experts = routing.weights.shape
    # not `weights != 0`: what stands for no token in a graph may be NaN, and so has k pairs at most
    sent = torch.zeros_like(routing.weights, dtype=torch.bool).scatter_(1, routing.chosen, True).T
    order = torch.argsort(~sent.flatten(), stable=True)[: routing.chosen.numel()]
    ranks = sent.flatten().cumsum(0).view(num_experts, num_tokens).T - 1  # [T, E]
    ends = sent.sum(1).cumsum(0).int()
    return Sorted(order % num_tokens, order // num_tokens, ends, ranks.gather(1, routing.chosen))


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float,
    routing: Routing,
    scales: Scales | None = None,
) -> Tensor:
    """`reference.predict_experts` for many tokens, in bfloat16; so are float8 weights meanwhile,
    which are exact in it."""
    pairs, (scale1, scale2) = by_expert(routing), scales or (None, None)
    hidden = _grouped(residual[pairs.token], fc1.to(residual.dtype), pairs)
    hidden = _scaled(hidden, scale1, pairs).relu_()
    scores = _scaled(_grouped(hidden, fc2.to(residual.dtype), pairs), scale2, pairs)
    mask = torch.empty(
        *routing.weights.shape, scores.shape[1], dtype=torch.bool, device=residual.device
    )
    mask[pairs.token, pairs.expert] = scores > threshold
    return mask.flatten(1)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
    routing: Routing,
) -> Tensor:
    """`reference.experts`, in bfloat16."""
    num_experts, hidden = routing.weights.shape[1], x.shape[1]
    pairs = by_expert(routing)
    projected = _grouped(x[pairs.token], gate_up.view(-1, hidden), pairs)
    kept = mask.view(len(x), num_experts, -1)[pairs.token, pairs.expert]
    values = gpu_gated.activated(projected, kept, activation, threshold)
    per_expert = down.view(num_experts, -1, hidden)
    results = F.grouped_mm(values, per_expert, offs=pairs.ends)  # [T * k, hidden]
    weights = routing.weights.gather(1, pairs.expert[pairs.places])
    return (results[pairs.places].float() * weights[:, :, None]).sum(1).to(x.dtype)


def _scaled(sums: Tensor, scale: Tensor | None, pairs: Sorted) -> Tensor:
    """Each pair's sums [T * k, out] by its own expert's part of the scales [E * out]."""
    if scale is None:
        return sums
    return (sums * scale.view(len(pairs.ends), -1)[pairs.expert]).to(sums.dtype)


def _grouped(x: Tensor, weight: Tensor, pairs: Sorted) -> Tensor:
    """Each pair's row by its own expert's weights: [T * k, in], [E * out, in] -> [T * k, out]."""
    per_expert = weight.view(len(pairs.ends), -1, weight.shape[1]).transpose(1, 2)
    return F.grouped_mm(x, per_expert, offs=pairs.ends)
