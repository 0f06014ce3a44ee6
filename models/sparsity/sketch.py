"""A predictor that needs no training: the layer's own gate and up rows, in 3 or 4 bits.

What it reads is the FFN's input after the norm, and its scores are rough values of the very
products whose signs decide, so its natural threshold is zero (a FATReLU's own).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from ..config import Activation, ModelError
from ..kernels import reference
from ..kernels.ops import Ops
from .predictor import Neurons, Tensors, deciding, matrix

BITS = (3, 4)
SLOTS = 32  # columns that one place of packed codes holds
CLIPS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # of a group's largest value


class SketchPredictor(nn.Module):
    """Each neuron's gate, and for dReLU its up, in few bits: their smaller product decides."""

    codes: Tensor
    scales: Tensor
    reads_normed = True

    def __init__(self, codes: Tensor, scales: Tensor, ops: Ops, threshold: float) -> None:
        """codes [N, R, bits, hidden / 32] int32, scales [N, R, groups], as `quantised` makes."""
        super().__init__()
        self.ops = ops
        self.threshold = threshold
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @classmethod
    def of(cls, tensors: Tensors, neurons: Neurons, threshold: float, ops: Ops) -> Self:
        codes, scales = matrix(tensors, "codes", 4), matrix(tensors, "scales", 3)
        like, num_rows = neurons.gate_up, rows_of(neurons.activation)
        width = neurons.hidden_size // SLOTS
        bits, groups = codes.shape[2], scales.shape[2]
        expected = (torch.int32, (len(like), num_rows, bits, width), (len(like), num_rows, groups))
        fits = (codes.dtype, tuple(codes.shape), tuple(scales.shape)) == expected
        if not fits or bits not in BITS or groups < 1 or width % groups:
            raise ModelError(
                f"codes {codes.dtype} {list(codes.shape)} and scales {list(scales.shape)} do not "
                f"fit hidden_size {neurons.hidden_size} and {len(like)} neurons of {num_rows} rows"
            )
        scale_type = torch.float32 if like.dtype is torch.float32 else torch.float16
        scales = scales.to(like.device, scale_type).contiguous()
        return cls(codes.to(like.device).contiguous(), scales, ops, threshold)

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales.half()}

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        return self.ops.sketch(x, self.codes, self.scales, deciding(self.threshold, thresholds))

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        return reference.sketch_scores(x, self.codes, self.scales)


def rows_of(activation: Activation) -> int:
    """How many of a neuron's rows decide whether it is zero: dReLU's gate and up, or the gate."""
    return 2 if activation is Activation.DRELU else 1


def sketch_of(neurons: Neurons, bits: int, group: int) -> dict[str, Tensor]:
    """A layer's sketch, `group` of a row's columns sharing a scale; raises ModelError."""
    hidden = neurons.hidden_size
    if hidden % SLOTS:
        raise ModelError(f"hidden_size {hidden} is no multiple of {SLOTS}: it cannot be sketched")
    if group < SLOTS or group % SLOTS or hidden % group:
        raise ModelError(
            f"a group of {group} does not fit: it must be a multiple of {SLOTS} that divides "
            f"hidden_size {hidden}"
        )
    rows = neurons.gate_up.view(len(neurons.gate_up), 2, hidden)[:, : rows_of(neurons.activation)]
    parts = [
        quantised(part, bits, group) for part in torch.split(rows, 1024)
    ]  # bounds what is in fp32
    codes, scales = (torch.cat(found) for found in zip(*parts, strict=True))
    return {"codes": codes, "scales": scales}


def quantised(rows: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """[.., hidden] -> codes and scales for `reference.unpack`, the scale of each group such that
    the squared error is smallest."""
    values = rows.float().reshape(
        *rows.shape[:-1], SLOTS, -1, group // SLOTS
    )  # [.., slots, groups, places]
    middle = ((1 << bits) - 1) / 2
    largest = values.abs().amax((-3, -1), keepdim=True)
    best_error, best = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    for clip in CLIPS:
        scale = (largest * clip / middle).half().float()  # as it is kept
        error = (_values(_codes(values, scale, middle), scale, middle) - values).square()
        error = error.sum((-3, -1), keepdim=True)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    codes = _codes(values, best, middle).flatten(-3)
    return reference.pack(codes, bits), best.flatten(-3).half()


def _codes(values: Tensor, scale: Tensor, middle: float) -> Tensor:
    return (values / scale.clamp(min=1e-12) + middle).round().clamp(0, 2 * middle)


def _values(codes: Tensor, scale: Tensor, middle: float) -> Tensor:
    return (codes - middle) * scale
