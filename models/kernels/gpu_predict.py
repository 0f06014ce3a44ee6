# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: a low-rank predictor for few tokens. Scores are accumulated in fp32, row by row in one
order, so that a score near zero falls on the same side whoever else is in the batch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import ceil_div, power_of_two

MAX_ROWS = 4  # tokens up to which a row is multiplied elementwise; beyond, on tensor cores
MAX_TOKENS = 64  # beyond, cuBLAS


@triton.jit
def rows_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_tokens,
    num_rows,
    width,
    threshold,
    SCORES: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """relu(x @ weight.T), or where it exceeds the threshold: -> [T, rows]."""
    t = tl.arange(0, TOKENS)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, width, BLOCK_K):
        at = start + k
        x = tl.load(
            x_ptr + t[:, None] * width + at[None, :],
            mask=(t[:, None] < num_tokens) & (at[None, :] < width),
            other=0.0,
        )
        w = tl.load(
            weight_ptr + rows.to(tl.int64)[:, None] * width + at[None, :],
            mask=(rows[:, None] < num_rows) & (at[None, :] < width),
            other=0.0,
        )
        acc += x.to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :]
    score = tl.sum(acc, 2)
    inside = (t[:, None] < num_tokens) & (rows[None, :] < num_rows)
    place = out_ptr + t[:, None] * num_rows + rows[None, :]
    if SCORES:
        tl.store(place, (score > threshold).to(tl.uint8), mask=inside)
    else:
        tl.store(place, tl.maximum(score, 0.0), mask=inside)


@triton.jit
def dots_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_tokens,
    num_rows,
    width,
    threshold,
    SCORES: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The same on tensor cores. With SPLIT, x is fp32 and is multiplied in two 16-bit parts, which
    keep 16 bits of its mantissa."""
    t = tl.arange(0, TOKENS)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((TOKENS, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        at = start + k
        x = tl.load(
            x_ptr + t[:, None] * width + at[None, :],
            mask=(t[:, None] < num_tokens) & (at[None, :] < width),
            other=0.0,
        )
        w = tl.load(
            weight_ptr + rows.to(tl.int64)[:, None] * width + at[None, :],
            mask=(rows[:, None] < num_rows) & (at[None, :] < width),
            other=0.0,
        )
        if SPLIT:
            high = x.to(w.dtype)
            low = (x - high.to(tl.float32)).to(w.dtype)
            acc = tl.dot(low, tl.trans(w), acc, input_precision="ieee")
            acc = tl.dot(high, tl.trans(w), acc, input_precision="ieee")
        else:
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    inside = (t[:, None] < num_tokens) & (rows[None, :] < num_rows)
    place = out_ptr + t[:, None] * num_rows + rows[None, :]
    if SCORES:
        tl.store(place, (acc > threshold).to(tl.uint8), mask=inside)
    else:
        tl.store(place, tl.maximum(acc, 0.0), mask=inside)


def predict(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float) -> Tensor:
    """`reference.predict` for at most MAX_TOKENS tokens."""
    num_tokens, rank, num_neurons = residual.shape[0], fc1.shape[0], fc2.shape[0]
    hidden = torch.empty(num_tokens, rank, dtype=torch.float32, device=residual.device)
    mask = torch.empty(num_tokens, num_neurons, dtype=torch.uint8, device=residual.device)
    _multiply(residual, fc1, hidden, threshold, scores=False)
    _multiply(hidden, fc2, mask, threshold, scores=True)
    return mask.view(torch.bool)


def _multiply(x: Tensor, weight: Tensor, out: Tensor, threshold: float, *, scores: bool) -> None:
    num_tokens, (num_rows, width) = x.shape[0], weight.shape
    sizes = (num_tokens, num_rows, width, threshold)
    if num_tokens <= MAX_ROWS:
        tokens = power_of_two(num_tokens)
        block = max(2, 8 // tokens) if scores else max(1, 4 // tokens)
        rows_kernel[(ceil_div(num_rows, block),)](
            x,
            weight,
            out,
            *sizes,
            SCORES=scores,
            TOKENS=tokens,
            BLOCK_N=block,
            BLOCK_K=512,
            num_warps=4,
        )
    else:
        tokens = power_of_two(max(16, num_tokens))
        dots_kernel[(ceil_div(num_rows, 16),)](
            x,
            weight,
            out,
            *sizes,
            SCORES=scores,
            SPLIT=x.dtype != weight.dtype,
            TOKENS=tokens,
            BLOCK_N=16,
            BLOCK_K=min(256, 16384 // tokens // x.element_size()),
            num_warps=4,
        )


def predict_many(residual: Tensor, fc1: Tensor, fc2: Tensor, threshold: float | Tensor) -> Tensor:
    """The same on cuBLAS, for many tokens: 16-bit products added in fp32.

    The hidden layer, fp32, is split as in `dots_kernel`.
    """
    if residual.dtype == torch.float32:
        return ((residual @ fc1.T).relu() @ fc2.T) > threshold
    hidden = torch.mm(residual, fc1.T, out_dtype=torch.float32).relu()
    high = hidden.to(residual.dtype)
    low = (hidden - high.float()).to(residual.dtype)
    scores = torch.mm(high, fc2.T, out_dtype=torch.float32)
    return scores + torch.mm(low, fc2.T, out_dtype=torch.float32) > threshold
