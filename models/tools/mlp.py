"""A feed-forward layer that learns which of its neurons matter: what every trainer here trains."""
# pyright: basic

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation


class Predictor(nn.Module):
    """fc2(relu(fc1(residual))) in fp32: near zero a bf16 score would be a coin flip."""

    def __init__(self, hidden: int, rank: int, neurons: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, rank, bias=False)
        self.fc2 = nn.Linear(rank, neurons, bias=False)

    def forward(self, residual: Tensor) -> Tensor:
        with torch.autocast(residual.device.type, enabled=False):
            # Not the layers themselves: sharded training hands over their weights in bf16.
            first = F.linear(residual.float(), self.fc1.weight.float()).relu()
            return F.linear(first, self.fc2.weight.float())


class MLP(nn.Module):
    """down(mask * act(gate(x), up(x))), named as published, with the mask inside.

    A rank of zero is no predictor and no mask: SwiGLU, or what ReLU leaves by itself.
    """

    def __init__(self, hidden: int, neurons: int, rank: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(hidden, neurons, bias=False)
        self.up_proj = nn.Linear(hidden, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, hidden, bias=False)
        self.predictor = Predictor(hidden, rank, neurons) if rank else None

    def values(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., neurons], before any mask."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        match self.activation:
            case Activation.DRELU:
                return gate.relu() * up.relu()
            case Activation.RELU:
                return gate.relu() * up
            case Activation.SILU:
                return F.silu(gate) * up
            case Activation.FATRELU:
                raise ValueError("FATReLU is served, not trained")

    def forward(
        self, x: Tensor, residual: Tensor, masked: bool, target: float
    ) -> tuple[Tensor, Tensor]:
        """Output, and [predictor's cross-entropy against the truth, squared excess of the kept
        share over `target`, kept share]."""
        value = self.values(x)
        truth = (value.detach() != 0).float()
        if self.predictor is None:
            zero = torch.zeros_like(truth[..., 0].mean())
            return self.down_proj(value), torch.stack((zero, zero, truth.mean()))
        score = self.predictor(residual)
        soft, keep = score.sigmoid(), (score > 0).float()
        share = (keep - soft).detach() + soft  # hard forward, soft backward
        imitation = F.binary_cross_entropy_with_logits(score, truth)
        excess = (share.mean() - target).clamp(min=0).square()
        y = self.down_proj(value * share.to(value.dtype) if masked else value)
        return y, torch.stack((imitation, excess, keep.mean()))
