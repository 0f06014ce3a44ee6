"""A feed-forward layer that learns which of its neurons matter: what every trainer here trains."""
# pyright: basic

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation

IMITATION, KEPT, LOST = range(3)  # of what a layer tells beside its output


def beyond(share: Tensor, target: float) -> Tensor:
    """The square of what exceeds the target."""
    return (share - target).clamp(min=0).square()


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
        self, x: Tensor, residual: Tensor, masked: bool | Tensor, positive_weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Output, and [imitation, kept, lost] of this layer.

        `masked` may say it for each row, as 1 or 0 in [batch, 1, 1]. Imitation is the predictor's
        cross-entropy against the truth, in which a neuron that is not zero counts
        `positive_weight` times; kept is the share of the neurons that the mask keeps, lost the
        share of the activations (their absolute values) that it drops.
        """
        value = self.values(x)
        truth = (value.detach() != 0).float()
        if self.predictor is None:
            zero = torch.zeros_like(truth[..., 0].mean())
            return self.down_proj(value), torch.stack((zero, truth.mean(), zero))
        score = self.predictor(residual)
        soft, keep = score.sigmoid(), (score > 0).float()
        share = (keep - soft).detach() + soft  # hard forward, soft backward
        weight = 1 + (positive_weight - 1) * truth
        imitation = F.binary_cross_entropy_with_logits(score, truth, weight)
        # Learned by the predictor alone: values that are pressed towards zero where the mask drops
        # them die everywhere.
        size = value.detach().float().abs()
        lost = (size * (1 - share)).sum() / size.sum().clamp(min=1e-6)
        through = share * masked + (1 - masked)
        return self.down_proj(value * through.to(value.dtype)), torch.stack(
            (imitation, share.mean(), lost)
        )
