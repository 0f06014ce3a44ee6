"""GPU kernels in Triton: the ops of `reference` for a CUDA device, none of which asks the host
anything about what it computes.

Dense products are cuBLAS's. TOKEN and UNION are one path here: a list of the neurons that any token
keeps, and each token's own mask applied inside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import FfnMode, ForwardBatch
from ..config import Activation
from . import gpu_attention, gpu_draw, gpu_norm, gpu_predict, gpu_prefill, gpu_sparse
from .reference import Limits


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


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
) -> Tensor:
    return gpu_attention.rotate_and_store(
        qkv, cos, sin, k_cache, v_cache, batch.positions, batch.slots
    )


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """Pieces of prompts in blocks of queries; else, and over pages of odd sizes, each by itself."""
    page_size, page_tables = k_cache.shape[2], batch.page_tables
    if batch.query_starts is not None and gpu_prefill.fits(page_size, page_tables.shape[1]):
        return gpu_prefill.attend(
            q, k_cache, v_cache, batch.positions, batch.query_starts, page_tables, scale, window
        )
    return gpu_attention.attend(
        q, k_cache, v_cache, batch.positions, batch.request_ids, page_tables, scale, window
    )


def predict(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float | Tensor) -> Tensor:
    if isinstance(threshold, Tensor):  # who asks for a threshold of its own runs without a graph
        return gpu_predict.predict_many(residual, fc1, fc2, threshold[:, None])
    if residual.shape[0] <= gpu_predict.MAX_TOKENS:
        return gpu_predict.predict(residual, fc1, fc2, threshold)
    return gpu_predict.predict_many(residual, fc1, fc2, threshold)


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    return gpu_sparse.gated(x, gate_up, None, activation, threshold)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    few = x.shape[0] <= gpu_sparse.MAX_TOKENS
    if mask is None or mode is FfnMode.DENSE or not few:
        return gpu_sparse.gated(x, gate_up, mask, activation, threshold) @ down
    return gpu_sparse.sparse(x, gate_up, down, mask, activation, threshold)


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    return gpu_draw.draw(logits, temperature, points, limits)
