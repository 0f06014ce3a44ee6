"""Which neurons a token needs.

A predictor that stands in the checkpoint's own forward is part of the function; one that was
trained beside it makes the model approximate.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation
from ..kernels import reference
from ..kernels.ops import Ops
from ..layers import Linear


class NeuronPredictor(Protocol):
    """Chooses neurons from the residual before the norm and the FFN's input after it.

    Where it does not read the second, `reads_normed` is false, and any tensor may stand there.
    """

    reads_normed: bool

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """[T, hidden] both -> [T, N] bool, True where the neuron is to be computed.

        thresholds [T] float32 stand in for the predictor's own, token by token.
        """
        ...


class LowRankPredictor(nn.Module):
    """`fc2(relu(fc1(residual))) > threshold`: TurboSparse's, and PowerInfer's separate ones.

    The input is the residual *before* the post-attention norm, as in the published forward
    (arXiv 2406.05955); feeding it the normed one gives a plausible, wrong mask.
    """

    reads_normed = False

    def __init__(
        self, hidden_size: int, rank: int, num_neurons: int, ops: Ops, threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.ops = ops
        self.threshold = threshold
        self.fc1 = Linear(hidden_size, rank)
        self.fc2 = Linear(rank, num_neurons)

    def widen(self, multiple: int) -> None:
        """Make the rank a multiple: rows of zeros in fc1 and columns of zeros in fc2 change no
        score, and whole tiles at aligned addresses are read faster on a GPU."""
        missing = -self.fc1.weight.shape[0] % multiple
        if missing:
            for layer, sides in ((self.fc1, (0, 0, 0, missing)), (self.fc2, (0, missing))):
                wider = F.pad(layer.weight, sides)
                layer.weight = nn.Parameter(wider, requires_grad=False)

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        threshold = self.threshold if thresholds is None else thresholds
        return self.ops.predict(residual, self.fc1.weight, self.fc2.weight, threshold)


class OraclePredictor(nn.Module):
    """The neurons that are truly not zero. Tells a wrong kernel from a wrong prediction.

    gate_up [N, 2 * hidden] is the layer's own, shared.
    """

    gate_up: Tensor
    reads_normed = True

    def __init__(self, gate_up: Tensor, activation: Activation, threshold: float) -> None:
        super().__init__()
        self.register_buffer("gate_up", gate_up.detach(), persistent=False)
        self.activation = activation
        self.threshold = threshold

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        assert thresholds is None, "the truth has no threshold"
        return reference.gated(x, self.gate_up, self.activation, self.threshold) != 0


def recall(mask: Tensor, true_mask: Tensor) -> float:
    """Share of the truly active neurons that a mask keeps; bool, any one shape. 1 if none is."""
    active = torch.count_nonzero(true_mask).item()
    return torch.count_nonzero(mask & true_mask).item() / active if active else 1.0
