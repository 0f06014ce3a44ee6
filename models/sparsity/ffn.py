"""The feed-forward block, sparse and dense: [T, hidden] -> [T, hidden]."""

from __future__ import annotations

from torch import Tensor, nn

from ..batch import ForwardBatch
from ..config import ModelConfig
from ..kernels import reference
from ..kernels.ops import Ops
from ..layers import Linear, weight
from .predictor import NeuronPredictor


class SparseFFN(nn.Module):
    """Neurons whose gate is a ReLU, skipped per token where the mask or the gate says zero.

    With a predictor the mask is applied in every mode. Without one the gate is computed first and
    only what ReLU zeroes is skipped, so the function is the dense one.
    """

    predictor: NeuronPredictor | None

    def __init__(
        self, config: ModelConfig, ops: Ops, predictor: NeuronPredictor | None = None
    ) -> None:
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        self.threshold = config.threshold
        self.gate_up = weight(config.num_neurons, 2 * config.hidden_size)
        self.down = weight(config.num_neurons, config.hidden_size)
        self.predictor = predictor

    def forward(self, x: Tensor, residual: Tensor, batch: ForwardBatch, layer: int) -> Tensor:
        mask = None
        if self.predictor is not None:
            mask = self.predictor.select(residual, x, batch.thresholds)
        if batch.active is not None:
            batch.active[layer] += self.active_fractions(x, mask)
        return self.ops.ffn(
            x, self.gate_up, self.down, mask, self.activation, self.threshold, batch.ffn_mode
        )

    def active_fractions(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[T]: each token's share of neurons that the mask keeps, without one that are not zero."""
        if mask is None:
            mask = reference.gated(x, self.gate_up, self.activation, self.threshold) != 0
        return mask.float().mean(-1)


class DenseFFN(nn.Module):
    """SwiGLU: no neuron is ever zero, none is skipped; `down` stays [hidden, N]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        self.gate_up = weight(config.num_neurons, 2 * config.hidden_size)
        self.down = Linear(config.num_neurons, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor, batch: ForwardBatch, layer: int) -> Tensor:
        value = self.ops.gated(x, self.gate_up, self.activation, 0.0)
        return self.ops.linear(value, self.down.weight)
