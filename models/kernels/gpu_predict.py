"""Which neurons a token keeps, on a GPU: by a low-rank predictor, or by the gate itself.

Scores are added up in fp32, so that one near zero falls on the same side whoever else is in the
batch, but for rounding of the hidden layer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import Routing
from ..config import Activation
from . import gpu_linear, reference_predict
from .gpu_epilogue import Epilogue
from .reference_predict import Scales


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    routing: Routing | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """`reference.predict`. With routing: E experts' predictors one after the other,
    fc1 [E * r, hidden], fc2 [E * N, r] -> [T, E * N]; of an expert to whom no token was sent
    nothing is written."""
    num_tokens, device = residual.shape[0], residual.device
    fits = gpu_linear.fits(residual, fc1) and gpu_linear.fits(residual, fc2)
    if isinstance(threshold, Tensor) or not fits:
        return _predict_many(residual, fc1, fc2, threshold, scales)
    scale1, scale2 = scales or (None, None)
    hidden = torch.empty(num_tokens, fc1.shape[0], dtype=residual.dtype, device=device)
    mask = torch.empty(num_tokens, fc2.shape[0], dtype=torch.uint8, device=device)
    gpu_linear.multiply(residual, fc1, hidden, Epilogue.RELU, routing=routing, row_scale=scale1)
    per_expert = routing is not None
    gpu_linear.multiply(
        hidden,
        fc2,
        mask,
        Epilogue.MASK,
        threshold=threshold,
        routing=routing,
        per_expert=per_expert,
        row_scale=scale2,
    )
    return mask.view(torch.bool)


def _predict_many(
    residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float | Tensor, scales: Scales | None
) -> Tensor:
    """On cuBLAS. Rounding to 16 bits leaves a score on its side of zero, not of another number."""
    if scales is not None:
        return _predict_many_scaled(residual, fc1, fc2, threshold, scales)
    hidden = F.linear(residual, fc1).relu_()
    if isinstance(threshold, Tensor):
        threshold = threshold[:, None]
    elif threshold == 0.0 or residual.dtype == torch.float32:
        return F.linear(hidden, fc2) > threshold
    return torch.mm(hidden, fc2.T, out_dtype=torch.float32) > threshold


def _predict_many_scaled(
    residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float | Tensor, scales: Scales
) -> Tensor:
    """float8 is exact in 16 bits: there is such a copy of one layer's weights meanwhile."""
    hidden = _sums(residual, fc1).mul_(scales[0]).relu_().to(residual.dtype)
    return reference_predict.above(_sums(hidden, fc2).mul_(scales[1]), threshold)


def _sums(x: Tensor, weight: Tensor) -> Tensor:
    """[T, in], [out, in] float8 -> [T, out] float32."""
    weight = weight.to(x.dtype)
    if x.dtype is torch.float32:
        return F.linear(x, weight)
    return torch.mm(x, weight.T, out_dtype=torch.float32)


def opened(x: Tensor, gate: Tensor, activation: Activation, threshold: float) -> Tensor:
    """The neurons whose gate is not shut, [T, N] bool; gate [N, hidden] of any row stride."""
    mask = torch.empty(x.shape[0], gate.shape[0], dtype=torch.uint8, device=x.device)
    bound = 0.0
    if activation is Activation.FATRELU:  # open at the threshold, where `>` is still shut
        bound = float(np.nextafter(np.float32(threshold), -np.inf, dtype=np.float32))
    gpu_linear.multiply(x, gate, mask, Epilogue.MASK, threshold=bound)
    return mask.view(torch.bool)
