"""CPU kernels in fp32, compiled by numba: one micro-kernel of four tokens by two weight rows.

Why not torch's matmul: decoding multiplies 1 to 64 rows, where a general GEMM reaches a third of
this. Every sum over `k` runs in one fixed order whatever else is in the batch, so a request's
numbers do not depend on its neighbours, on chunking or on the prefix cache: bit for bit.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from ..batch import FfnMode, ForwardBatch
from ..config import Activation

# Sums may be reordered once, when compiled (vector lanes); NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
ROWS = 32  # weight rows that one unit of parallel work multiplies
BLOCK = 768  # neurons in one partial sum of the down projection: its order is part of the result
_CODES = {a: i for i, a in enumerate(Activation)}
SILU, RELU, FATRELU, DRELU = (_CODES[a] for a in Activation)


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"needs a CPU tensor, not {device}"
    if dtype is not torch.float32:
        return f"computes in float32, not {dtype}"
    return None


def set_num_threads(num_threads: int) -> None:
    numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))


@njit(fastmath=FAST, cache=True, inline="always")
def _dots(x, t, w, n, m):
    """Tokens t .. t+3 (clamped) times the rows n and m of w: eight sums.

    Loop variables index alone: with `w[n, offset + k]` numba guards against a negative index and
    nothing is vectorised. Hence the views ([2N, hidden] for gate and up) in this file.
    """
    last = x.shape[0] - 1
    t1, t2, t3 = min(t + 1, last), min(t + 2, last), min(t + 3, last)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    for k in range(x.shape[1]):
        w0, w1 = w[n, k], w[m, k]
        s00 += x[t, k] * w0
        s10 += x[t, k] * w1
        s01 += x[t1, k] * w0
        s11 += x[t1, k] * w1
        s02 += x[t2, k] * w0
        s12 += x[t2, k] * w1
        s03 += x[t3, k] * w0
        s13 += x[t3, k] * w1
    return s00, s01, s02, s03, s10, s11, s12, s13


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _linear(x, w, out):
    num_tokens, num_rows = out.shape
    last = num_tokens - 1
    for block in prange((num_rows + ROWS - 1) // ROWS):
        for n in range(block * ROWS, min(num_rows, (block + 1) * ROWS), 2):
            m = min(n + 1, num_rows - 1)
            for t in range(0, num_tokens, 4):
                t1, t2, t3 = min(t + 1, last), min(t + 2, last), min(t + 3, last)
                s = _dots(x, t, w, n, m)
                out[t, n], out[t1, n], out[t2, n], out[t3, n] = s[0], s[1], s[2], s[3]
                out[t, m], out[t1, m], out[t2, m], out[t3, m] = s[4], s[5], s[6], s[7]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0])
    _linear(x.numpy(), weight.numpy(), out.numpy())
    return out


@njit(fastmath=FAST, cache=True, nogil=True)
def _add_rms_norm(delta, residual, scale, weight, eps, normed, summed):
    num_tokens, hidden = residual.shape
    for t in range(num_tokens):
        square = np.float32(0)
        for k in range(hidden):
            value = residual[t, k] + scale * delta[t, k]
            summed[t, k] = value
            square += value * value
        inverse = np.float32(1) / np.sqrt(square / np.float32(hidden) + eps)
        for k in range(hidden):
            normed[t, k] = summed[t, k] * inverse * weight[k]


def add_rms_norm(
    delta: Tensor, residual: Tensor, scale: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    normed, summed = torch.empty_like(residual), torch.empty_like(residual)
    _add_rms_norm(
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


@njit(fastmath=FAST, cache=True, nogil=True)
def _rotate_and_store(qkv, cos, sin, k_cache, v_cache, positions, slots, q):
    """Heads as [.., 2, D/2]: the two halves that a rotation mixes."""
    num_tokens, num_heads, _, half = q.shape
    _, num_kv_heads, page_size, _, _ = k_cache.shape
    for t in range(num_tokens):
        position = positions[t]
        page, offset = slots[t] // page_size, slots[t] % page_size
        for head in range(num_heads):
            for d in range(half):
                a, b = qkv[t, head, 0, d], qkv[t, head, 1, d]
                q[t, head, 0, d] = a * cos[position, d] - b * sin[position, d]
                q[t, head, 1, d] = b * cos[position, d] + a * sin[position, d]
        for head in range(num_kv_heads):
            key, value = num_heads + head, num_heads + num_kv_heads + head
            for d in range(half):
                a, b = qkv[t, key, 0, d], qkv[t, key, 1, d]
                k_cache[page, head, offset, 0, d] = a * cos[position, d] - b * sin[position, d]
                k_cache[page, head, offset, 1, d] = b * cos[position, d] + a * sin[position, d]
                v_cache[page, head, offset, 0, d] = qkv[t, value, 0, d]
                v_cache[page, head, offset, 1, d] = qkv[t, value, 1, d]


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
    _rotate_and_store(
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


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _attend(q, k_cache, v_cache, requests, page_tables, positions, scale, window, out):
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    group = num_heads // num_kv_heads
    for work in prange(num_tokens * num_kv_heads):
        t, kv_head = work // num_kv_heads, work % num_kv_heads
        end = positions[t] + 1
        begin = max(0, end - window)
        weights = np.empty(page_size, np.float32)
        total = np.zeros((group, head_dim), np.float32)
        peak = np.full(group, -np.inf, np.float32)
        norm = np.zeros(group, np.float32)
        for column in range(begin // page_size, (end + page_size - 1) // page_size):
            page = page_tables[requests[t], column]
            low = max(0, begin - column * page_size)
            high = min(page_size, end - column * page_size)
            for g in range(group):
                head = kv_head * group + g
                top = peak[g]
                for j in range(low, high):
                    score = np.float32(0)
                    for d in range(head_dim):
                        score += q[t, head, d] * k_cache[page, kv_head, j, d]
                    weights[j] = score * scale
                    top = max(top, weights[j])
                decay = np.float32(math.exp(peak[g] - top))
                peak[g] = top
                norm[g] *= decay
                for d in range(head_dim):
                    total[g, d] *= decay
                for j in range(low, high):
                    weight = np.float32(math.exp(weights[j] - top))
                    norm[g] += weight
                    for d in range(head_dim):
                        total[g, d] += weight * v_cache[page, kv_head, j, d]
        for g in range(group):
            for d in range(head_dim):
                out[t, kv_head * group + g, d] = total[g, d] / norm[g]


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    out = torch.empty_like(q)
    _attend(
        q.numpy(),
        k_cache.numpy(),
        v_cache.numpy(),
        batch.request_ids.numpy(),
        batch.page_tables.numpy(),
        batch.positions.numpy(),
        np.float32(scale),
        window or 1 << 60,
        out.numpy(),
    )
    return out.flatten(1)


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _predict(residual, fc1, fc2, threshold, hidden, mask):
    num_tokens, rank = hidden.shape
    last = num_tokens - 1
    for block in prange((rank + ROWS - 1) // ROWS):
        for n in range(block * ROWS, min(rank, (block + 1) * ROWS), 2):
            m = min(n + 1, rank - 1)
            for t in range(0, num_tokens, 4):
                s = _dots(residual, t, fc1, n, m)
                for i in range(min(4, num_tokens - t)):
                    hidden[t + i, n] = max(s[i], np.float32(0))
                    hidden[t + i, m] = max(s[4 + i], np.float32(0))
    num_neurons = fc2.shape[0]
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        for n in range(block * ROWS, min(num_neurons, (block + 1) * ROWS), 2):
            m = min(n + 1, num_neurons - 1)
            for t in range(0, num_tokens, 4):
                t1, t2, t3 = min(t + 1, last), min(t + 2, last), min(t + 3, last)
                s = _dots(hidden, t, fc2, n, m)
                mask[t, n], mask[t1, n] = s[0] > threshold, s[1] > threshold
                mask[t2, n], mask[t3, n] = s[2] > threshold, s[3] > threshold
                mask[t, m], mask[t1, m] = s[4] > threshold, s[5] > threshold
                mask[t2, m], mask[t3, m] = s[6] > threshold, s[7] > threshold


def predict(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float) -> Tensor:
    num_tokens = residual.shape[0]
    hidden = torch.empty(num_tokens, fc1.shape[0])
    mask = torch.empty(num_tokens, fc2.shape[0], dtype=torch.bool)
    _predict(
        residual.numpy(),
        fc1.numpy(),
        fc2.numpy(),
        np.float32(threshold),
        hidden.numpy(),
        mask.numpy(),
    )
    return mask


@njit(fastmath=FAST, cache=True, inline="always")
def _activate(gate, up, code, threshold):
    if code == DRELU:
        return max(gate, np.float32(0)) * max(up, np.float32(0))
    if code == RELU:
        return max(gate, np.float32(0)) * up
    if code == FATRELU:
        return gate * up if gate >= threshold else np.float32(0)
    return gate / (np.float32(1) + np.float32(math.exp(-gate))) * up


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _gated(x, gate_up, mask, masked, code, threshold, value):
    """Every gate and up: value[t, n] = act(x[t] . gate[n], x[t] . up[n]), zero where masked out."""
    num_tokens, num_neurons = value.shape
    last = num_tokens - 1
    rows = ROWS // 2
    for block in prange((num_neurons + rows - 1) // rows):
        for n in range(block * rows, min(num_neurons, (block + 1) * rows)):
            for t in range(0, num_tokens, 4):
                t1, t2, t3 = min(t + 1, last), min(t + 2, last), min(t + 3, last)
                s = _dots(x, t, gate_up, 2 * n, 2 * n + 1)
                value[t, n] = _activate(s[0], s[4], code, threshold)
                value[t1, n] = _activate(s[1], s[5], code, threshold)
                value[t2, n] = _activate(s[2], s[6], code, threshold)
                value[t3, n] = _activate(s[3], s[7], code, threshold)
        if masked:
            for t in range(num_tokens):
                for n in range(block * rows, min(num_neurons, (block + 1) * rows)):
                    value[t, n] = value[t, n] if mask[t, n] else np.float32(0)


_NO_MASK = np.empty((0, 0), np.bool_)


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    value = torch.empty(x.shape[0], gate_up.shape[0])
    _gated(
        x.numpy(),
        gate_up.view(-1, x.shape[1]).numpy(),
        _NO_MASK,
        False,
        _CODES[activation],
        np.float32(threshold),
        value.numpy(),
    )
    return value


@njit(fastmath=FAST, cache=True, inline="always")
def _neuron(x, t, gate_up, n, code, threshold):
    """One neuron of one token, its up row read only where the gate leaves something."""
    hidden = x.shape[1]
    gate = np.float32(0)
    for k in range(hidden):
        gate += x[t, k] * gate_up[2 * n, k]
    if (code == FATRELU and gate < threshold) or (code != FATRELU and gate <= 0):
        return np.float32(0)
    up = np.float32(0)
    for k in range(hidden):
        up += x[t, k] * gate_up[2 * n + 1, k]
    return max(up, np.float32(0)) * gate if code == DRELU else up * gate


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _gated_token(x, gate_up, mask, masked, code, threshold, value):
    """Token by token, its own neurons only."""
    num_tokens, num_neurons = value.shape
    num_blocks = (num_neurons + BLOCK - 1) // BLOCK
    for work in prange(num_tokens * num_blocks):
        t, block = work // num_blocks, work % num_blocks
        for n in range(block * BLOCK, min(num_neurons, (block + 1) * BLOCK)):
            keep = not masked or mask[t, n]
            value[t, n] = _neuron(x, t, gate_up, n, code, threshold) if keep else np.float32(0)


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _gated_union(x, gate_up, mask, masked, code, threshold, value):
    """Neuron by neuron: a row that any token needs is read from memory once, for those tokens."""
    num_tokens, num_neurons = value.shape
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        for n in range(block * ROWS, min(num_neurons, (block + 1) * ROWS)):
            for t in range(num_tokens):
                keep = not masked or mask[t, n]
                value[t, n] = _neuron(x, t, gate_up, n, code, threshold) if keep else np.float32(0)


@njit(fastmath=FAST, cache=True, parallel=True, nogil=True)
def _down(value, down, partial):
    """Rows of `down` weighted by the neurons that are not zero, one partial sum a block."""
    num_tokens, num_neurons = value.shape
    num_blocks, hidden = partial.shape[1], down.shape[1]
    for work in prange(num_tokens * num_blocks):
        t, block = work // num_blocks, work % num_blocks
        for k in range(hidden):
            partial[t, block, k] = 0
        for n in range(block * BLOCK, min(num_neurons, (block + 1) * BLOCK)):
            weight = value[t, n]
            if weight != 0:
                for k in range(hidden):
                    partial[t, block, k] += weight * down[n, k]
    for t in range(num_tokens):
        for block in range(1, num_blocks):
            for k in range(hidden):
                partial[t, 0, k] += partial[t, block, k]


_GATED = {FfnMode.TOKEN: _gated_token, FfnMode.UNION: _gated_union, FfnMode.DENSE: _gated}


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    num_tokens, hidden = x.shape
    value = torch.empty(num_tokens, gate_up.shape[0])
    _GATED[mode](
        x.numpy(),
        gate_up.view(-1, hidden).numpy(),
        _NO_MASK if mask is None else mask.numpy(),
        mask is not None,
        _CODES[activation],
        np.float32(threshold),
        value.numpy(),
    )
    partial = torch.empty(num_tokens, -(-value.shape[1] // BLOCK), hidden)
    _down(value.numpy(), down.numpy(), partial.numpy())
    return partial[:, 0]
