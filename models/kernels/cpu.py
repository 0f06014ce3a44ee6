"""The ops on a CPU in fp32: tensors in and out, compiled by numba in the `cpu_*` files beside this.

Why not torch's matmul: decoding multiplies 1 to 64 rows, where a general GEMM reaches a third of
this. Every sum runs in one fixed order whatever else is in the batch, so a request's numbers do
not depend on its neighbours, on chunking, on the FFN mode or on the prefix cache: bit for bit.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from functools import cache

import numba
import torch
from numba.core import config as numba_config
from torch import Tensor

from ..batch import FfnMode, ForwardBatch, PageBudgets, Routing
from ..config import Activation
from . import cpu_attention, cpu_draw, cpu_ffn, cpu_matmul, cpu_pages, cpu_sketch
from .reference import Choice, Limits, best_of
from .reference_pages import Gate, add_shares
from .reference_predict import Scales, whole

NO_WINDOW = 1 << 60  # positions


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"needs a CPU tensor, not {device}"
    if dtype is not torch.float32:
        return f"computes in float32, not {dtype}"
    return None


def set_num_threads(num_threads: int) -> None:
    numba.set_num_threads(min(num_threads, numba_config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]


def get_num_threads() -> int:
    return numba.get_num_threads()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    (num_tokens, num_columns), num_rows = x.shape, weight.shape[0]
    out = torch.empty(num_tokens, num_rows)
    cpu_matmul.linear(_at(x), weight.data_ptr(), out.data_ptr(), num_tokens, num_columns, num_rows)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    num_tokens, hidden = x.shape
    normed = torch.empty(num_tokens, hidden)
    cpu_matmul.rms_norm(_at(x), weight.data_ptr(), eps, normed.data_ptr(), num_tokens, hidden)
    return normed


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    return linear(rms_norm(x, norm, eps), weight)


def head(x: Tensor, norm: Tensor, eps: float, table: Tensor) -> Tensor:
    return norm_linear(x, norm, eps, table)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, scale: float) -> Tensor:
    return torch.add(residual, linear(x, weight), alpha=scale)


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
) -> Tensor:
    kv_shape = _, num_kv_heads, _, head_dim = tuple(k_cache.shape)
    shape = (qkv.shape[0], qkv.shape[1] // head_dim - 2 * num_kv_heads, head_dim)
    q = torch.empty(shape)
    cpu_attention.rotate_and_store(
        _at(qkv),
        cos.data_ptr(),
        sin.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        batch.positions.data_ptr(),
        batch.slots.data_ptr(),
        q.data_ptr(),
        shape,
        kv_shape,
        cos.shape[0],
    )
    return q


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
    chosen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`chosen` are what `choose` returns: None: every page."""
    shape = num_tokens, num_heads, head_dim = tuple(q.shape)
    out = torch.empty(num_tokens, num_heads * head_dim)
    cpu_attention.attend(
        _at(q),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        batch.request_ids.data_ptr(),
        _at(batch.page_tables),
        batch.positions.data_ptr(),
        *((0, 0) if chosen is None else map(_at, chosen)),
        out.data_ptr(),
        shape,
        tuple(k_cache.shape),
        tuple(batch.page_tables.shape),
        scale,
        window or NO_WINDOW,
    )
    return out


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
    q = rotate_and_store(qkv, cos, sin, k_cache, v_cache, batch)
    return attend(q, k_cache, v_cache, batch, scale, window)


def choose(
    q: Tensor,
    summary: Tensor,
    gate: Gate | None,
    batch: ForwardBatch,
    budgets: PageBudgets,
    page_size: int,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    num_pages, num_kv_heads, _, head_dim = summary.shape
    tables_shape = tuple(batch.page_tables.shape)
    columns = torch.empty(q.shape[0], num_kv_heads, tables_shape[1], dtype=torch.int32)
    counts = torch.empty(q.shape[0], num_kv_heads, dtype=torch.int32)
    cpu_pages.choose(
        _at(q),
        _at(summary),
        *((0, 0) if gate is None else map(_at, gate)),
        batch.request_ids.data_ptr(),
        _at(batch.page_tables),
        batch.positions.data_ptr(),
        *(_at(each) for each in (budgets.pages, budgets.shares, budgets.gated)),
        columns.data_ptr(),
        counts.data_ptr(),
        tuple(q.shape),
        (num_pages, num_kv_heads, page_size, head_dim),
        tables_shape,
        0 if gate is None else gate[0].shape[1],
        scale,
        window or NO_WINDOW,
    )
    return columns, counts


def sparse_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    summary: Tensor,
    gate: Gate | None,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    q = rotate_and_store(qkv, cos, sin, k_cache, v_cache, batch)
    summarize(k_cache, summary, batch.slots)
    budgets, page_size = batch.budgets, k_cache.shape[2]
    if budgets is None:
        return attend(q, k_cache, v_cache, batch, scale, window)
    chosen = choose(q, summary, gate, batch, budgets, page_size, scale, window)
    add_shares(budgets, chosen[1], batch, page_size, window)
    return attend(q, k_cache, v_cache, batch, scale, window, chosen)


def summarize(k_cache: Tensor, summary: Tensor, slots: Tensor) -> None:
    shape = tuple(k_cache.shape)
    cpu_pages.summarize(_at(k_cache), _at(summary), slots.data_ptr(), len(slots), shape)


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    scales: Scales | None = None,
) -> Tensor:
    """Weights in 8 bits become whole at every call: right, in any company, but not fast."""
    if scales is not None:
        fc1, fc2 = whole(fc1, scales[0]), whole(fc2, scales[1])
    (num_tokens, num_columns), (num_neurons, rank) = residual.shape, fc2.shape
    thresholds, is_one = _thresholds(threshold)
    mask = torch.empty(num_tokens, num_neurons, dtype=torch.bool)
    cpu_ffn.predict(
        _at(residual),
        fc1.data_ptr(),
        fc2.data_ptr(),
        _at(thresholds),
        is_one,
        mask.data_ptr(),
        num_tokens,
        num_columns,
        rank,
        num_neurons,
    )
    return mask


def sketch(x: Tensor, codes: Tensor, scales: Tensor, threshold: float | Tensor) -> Tensor:
    thresholds, is_one = _thresholds(threshold)
    mask = torch.empty(x.shape[0], codes.shape[0], dtype=torch.bool)
    assert scales.dtype is torch.float32, scales.dtype
    cpu_sketch.sketch(
        _at(x),
        _at(codes),
        _at(scales),
        _at(thresholds),
        is_one,
        mask.data_ptr(),
        x.shape[0],
        tuple(codes.shape),
        scales.shape[2],
    )
    return mask


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    (num_tokens, num_columns), num_neurons = x.shape, gate_up.shape[0]
    value = torch.empty(num_tokens, num_neurons)
    cpu_ffn.gated(
        _at(x),
        gate_up.data_ptr(),
        value.data_ptr(),
        num_tokens,
        num_columns,
        num_neurons,
        cpu_ffn.CODES[activation],
        threshold,
    )
    return value


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    (num_tokens, num_columns), num_neurons = x.shape, gate_up.shape[0]
    out = torch.empty(num_tokens, num_columns)
    cpu_ffn.ffn(
        _at(x),
        gate_up.data_ptr(),
        down.data_ptr(),
        0 if mask is None else _at(mask),
        out.data_ptr(),
        num_tokens,
        num_columns,
        num_neurons,
        cpu_ffn.CODES[activation],
        threshold,
        cpu_ffn.MODES[mode],
        get_num_threads(),
    )
    return out


def norm_gated(
    x: Tensor, norm: Tensor, eps: float, gate_up: Tensor, activation: Activation
) -> Tensor:
    return gated(rms_norm(x, norm, eps), gate_up, activation, 0.0)


def ffn_add(
    residual: Tensor,
    norm: Tensor,
    eps: float,
    gate_up: Tensor,
    down: Tensor,
    choose: Choice,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
    scale: float,
) -> Tensor:
    x = rms_norm(residual, norm, eps)
    delta = ffn(x, gate_up, down, choose(), activation, threshold, mode)
    return torch.add(residual, delta, alpha=scale)


def route(x: Tensor, router: Tensor, num_chosen: int) -> Routing:
    return best_of(linear(x, router), num_chosen)


def norm_route(
    residual: Tensor, norm: Tensor, eps: float, router: Tensor, num_chosen: int
) -> tuple[Tensor, Routing]:
    x = rms_norm(residual, norm, eps)
    return x, route(x, router, num_chosen)


def most_likely(logits: Tensor) -> Tensor:
    """numpy's is ten times as fast as torch's."""
    return torch.from_numpy(logits.numpy().argmax(-1))


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    token_ids = torch.empty(logits.shape[0], dtype=torch.int64)
    cpu_draw.draw(
        _at(logits),
        _at(temperature),
        _at(points),
        *((0, 0, 0) if limits is None else (_at(limit) for limit in limits)),
        token_ids.data_ptr(),
        *logits.shape,
    )
    return token_ids


def _thresholds(threshold: float | Tensor) -> tuple[Tensor, bool]:
    """One for all tokens or one a token, as float32, and whether it is one for all."""
    if isinstance(threshold, Tensor):
        return threshold, False
    return _constant(threshold), True


@cache
def _constant(value: float) -> Tensor:
    """A model's thresholds are few; making a tensor costs as much as a small kernel."""
    return torch.tensor([value], dtype=torch.float32)


def _at(x: Tensor) -> int:
    """The address of what a kernel takes for contiguous."""
    assert x.is_contiguous(), (x.shape, x.stride())
    return x.data_ptr()
