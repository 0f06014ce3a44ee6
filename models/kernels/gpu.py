"""GPU kernels in Triton: the ops of `reference` for a CUDA device, none of which asks the host
anything about what it computes.

Dense products of many tokens are cuBLAS's. TOKEN and UNION are one path here: only the rows that some
token keeps are read, and each token's own mask is applied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import FfnMode, ForwardBatch
from ..config import Activation
from . import gpu_attention, gpu_draw, gpu_linear, gpu_norm, gpu_predict, gpu_prefill, gpu_sparse
from .gpu_linear import Epilogue
from .reference import Limits

FEW = 16


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run there; None: they can."""
    major, minor = torch.cuda.get_device_capability(device)
    if dtype is torch.bfloat16 and major < 8:
        return f"bfloat16 needs compute capability 8.0, not {major}.{minor}"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return gpu_norm.rms_norm(x, weight, eps)


def add_rms_norm(
    delta: Tensor, residual: Tensor, scale: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return gpu_norm.add_rms_norm(delta, residual, scale, weight, eps)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Up to 16 tokens in Triton; from there on cuBLAS reads the weights as fast."""
    if x.shape[0] <= FEW and gpu_linear.fits(x, weight):
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        return gpu_linear.multiply(x, weight, out, Epilogue.NONE)
    return F.linear(x, weight)


def attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """One kernel where every token is its request's only one; pieces of prompts are stored first,
    and attend in blocks of queries."""
    caches, tables = (k_cache, v_cache), batch.page_tables
    if batch.query_starts is None:
        places = (batch.positions, batch.slots, batch.request_ids, tables)
        return gpu_attention.decode(qkv, cos, sin, *caches, *places, scale, window)
    places = (batch.positions, batch.slots)
    q = gpu_attention.rotate_and_store(qkv, cos, sin, *caches, *places)
    places = (batch.positions, batch.query_starts, tables)
    return gpu_prefill.attend(q, *caches, *places, scale, window)


def predict(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float | Tensor) -> Tensor:
    return gpu_predict.predict(residual, fc1, fc2, threshold)


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    projected = linear(x, gate_up.view(-1, x.shape[1]))
    return gpu_sparse.activated(projected, None, activation, threshold)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    """Without a mask the gate is one: it is computed first, and names the rows to read."""
    (num_tokens, hidden), num_neurons = x.shape, gate_up.shape[0]
    if mode is FfnMode.DENSE or not gpu_sparse.fits(num_tokens, hidden, num_neurons, 1):
        projected = F.linear(x, gate_up.view(-1, hidden))
        return gpu_sparse.activated(projected, mask, activation, threshold) @ down
    if mask is None:
        mask = gpu_predict.opened(x, gate_up[:, :hidden], activation, threshold)
    return gpu_sparse.sparse(x, gate_up, down, mask, activation, threshold)


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    return gpu_draw.draw(logits, temperature, points, limits)
