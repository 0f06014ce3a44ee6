"""The ops on a CPU in fp32: tensors in and out, compiled by numba in the `cpu_*` files beside this.

Why not torch's matmul: decoding multiplies 1 to 64 rows, where a general GEMM reaches a third of
this. Every sum runs in one fixed order whatever else is in the batch, so a request's numbers do
not depend on its neighbours, on chunking, on the FFN mode or on the prefix cache: bit for bit.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numba
import numpy as np
import torch
from numba.core import config as numba_config
from torch import Tensor

from ..batch import FfnMode, ForwardBatch
from ..config import Activation
from . import cpu_attention, cpu_ffn, cpu_matmul
from .cpu_simd import LANES

_NO_MASK = np.empty((0, 0), np.bool_)
_GATED = {
    FfnMode.TOKEN: cpu_ffn.gated_by_token,
    FfnMode.UNION: cpu_ffn.gated_by_neuron,
    FfnMode.DENSE: cpu_ffn.gated,
}


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"needs a CPU tensor, not {device}"
    if dtype is not torch.float32:
        return f"computes in float32, not {dtype}"
    return None


def set_num_threads(num_threads: int) -> None:
    numba.set_num_threads(min(num_threads, numba_config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0])
    cpu_matmul.linear(x.numpy(), weight.numpy(), out.numpy())
    return out


def add_rms_norm(
    delta: Tensor, residual: Tensor, scale: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    normed, summed = torch.empty_like(residual), torch.empty_like(residual)
    cpu_matmul.add_rms_norm(
        delta.numpy(),
        residual.numpy(),
        np.float32(scale),
        weight.numpy(),
        np.float32(eps),
        normed.numpy(),
        summed.numpy(),
    )
    return normed, summed


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return add_rms_norm(x, x, 0.0, weight, eps)[0]


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
) -> Tensor:
    num_tokens, (_, num_kv_heads, _, head_dim) = qkv.shape[0], k_cache.shape
    q = torch.empty(num_tokens, qkv.shape[1] // head_dim - 2 * num_kv_heads, head_dim)
    halves = (2, head_dim // 2)
    cpu_attention.rotate_and_store(
        qkv.view(num_tokens, -1, *halves).numpy(),
        cos.numpy(),
        sin.numpy(),
        k_cache.unflatten(-1, halves).numpy(),
        v_cache.unflatten(-1, halves).numpy(),
        batch.positions.numpy(),
        batch.slots.numpy(),
        q.unflatten(-1, halves).numpy(),
    )
    return q


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    out = torch.empty(num_tokens, num_heads * head_dim)
    groups = (num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    cpu_attention.attend(
        q.view(groups).numpy(),
        k_cache.view(-1, head_dim).numpy(),
        v_cache.view(-1, head_dim).numpy(),
        page_size,
        batch.request_ids.numpy(),
        batch.page_tables.numpy(),
        batch.positions.numpy(),
        np.float32(scale),
        window or 1 << 60,
        out.view(groups).numpy(),
    )
    return out


def predict(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float) -> Tensor:
    num_tokens = residual.shape[0]
    hidden = torch.empty(num_tokens, fc1.shape[0])
    mask = torch.empty(num_tokens, fc2.shape[0], dtype=torch.bool)
    cpu_ffn.predict(
        residual.numpy(),
        fc1.numpy(),
        fc2.numpy(),
        np.float32(threshold),
        hidden.numpy(),
        mask.numpy(),
    )
    return mask


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    return _gated(x, gate_up, None, activation, threshold, FfnMode.DENSE)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    value = _gated(x, gate_up, mask, activation, threshold, mode)
    out = torch.empty_like(x)
    num_slices = min(numba.get_num_threads(), -(-x.shape[1] // LANES))
    cpu_ffn.sum_rows(value.numpy(), down.numpy(), num_slices, out.numpy())
    return out


def _gated(
    x: Tensor,
    gate_up: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    value = torch.empty(x.shape[0], gate_up.shape[0])
    _GATED[mode](
        x.numpy(),
        gate_up.view(-1, x.shape[1]).numpy(),
        _NO_MASK if mask is None else mask.numpy(),
        mask is not None,
        cpu_ffn.CODES[activation],
        np.float32(threshold),
        value.numpy(),
    )
    return value
