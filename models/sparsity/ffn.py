"""The feed-forward block, sparse and dense: [T, hidden] -> [T, hidden]."""

from __future__ import annotations

from torch import Tensor, nn

from ..batch import ForwardBatch
from ..config import ModelConfig
from ..kernels import reference
from ..kernels.ops import Ops
from ..layers import Linear, Norm, weight
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
        self.residual_scale = config.residual_scale
        self.gate_up = weight(config.num_neurons, 2 * config.hidden_size)
        self.down = weight(config.num_neurons, config.hidden_size)
        self.predictor = predictor

    def forward(self, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int) -> Tensor:
        """residual + scale * FFN(norm(residual))."""
        return self.ops.ffn_add(
            residual,
            norm.weight,
            norm.eps,
            self.gate_up,
            self.down,
            lambda: self.mask(residual, norm, batch, layer),
            self.activation,
            self.threshold,
            batch.ffn_mode,
            self.residual_scale,
        )

    def expert(
        self, x: Tensor, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int
    ) -> Tensor:
        """The FFN alone, as one of several: x = norm(residual)."""
        mask = self.mask(residual, norm, batch, layer)
        return self.ops.ffn(
            x, self.gate_up, self.down, mask, self.activation, self.threshold, batch.ffn_mode
        )

    def mask(self, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int) -> Tensor | None:
        """[T, N] bool, what is to be computed; None leaves it to the gate."""
        mask, predictor = None, self.predictor
        if predictor is None and batch.active is None:
            return None
        needs_x = predictor is None or predictor.reads_normed
        x = self.ops.rms_norm(residual, norm.weight, norm.eps) if needs_x else residual
        if predictor is not None:
            mask = predictor.select(residual, x, batch.thresholds)
        if batch.active is not None:
            self._measure(x, mask, batch, layer)
        return mask

    def _measure(self, x: Tensor, mask: Tensor | None, batch: ForwardBatch, layer: int) -> None:
        """Add to each token's share of neurons, and to the share that any token of them needs."""
        if mask is None:
            mask = reference.gated(x, self.gate_up, self.activation, self.threshold)
        kept = mask != 0  # [T, N]
        if batch.active is not None:
            batch.active[layer] += kept.float().mean(-1)
        if batch.union is not None:
            batch.union[layer] += kept.any(0).float().mean()


class DenseFFN(nn.Module):
    """SwiGLU: no neuron is ever zero, none is skipped; `down` stays [hidden, N]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        self.residual_scale = config.residual_scale
        self.gate_up = weight(config.num_neurons, 2 * config.hidden_size)
        self.down = Linear(config.num_neurons, config.hidden_size)

    def forward(self, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int) -> Tensor:
        """residual + scale * FFN(norm(residual))."""
        value = self.ops.norm_gated(residual, norm.weight, norm.eps, self.gate_up, self.activation)
        return self.ops.linear_add(value, self.down.weight, residual, self.residual_scale)

    def expert(
        self, x: Tensor, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int
    ) -> Tensor:
        """The FFN alone, as one of several: x = norm(residual)."""
        value = self.ops.gated(x, self.gate_up, self.activation, 0.0)
        return self.ops.linear(value, self.down.weight)
