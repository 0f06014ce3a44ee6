# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: what trained gates add to the estimates of pages: `reference_pages.learned`."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_launch import overlap
from .gpu_rotary import rotated_whole
from .reference_pages import Gate
from .sizes import power_of_two

RANKS = 64  # of a gate, multiplied at a time


@triton.jit
def learned_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    query_ptr,
    key_ptr,
    gated_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One query of one token: what its gate adds to it, rounded where the reference rounds."""
    t, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DIM)
    kind = qkv_ptr.dtype.element_ty
    inside = d < HEAD_DIM
    query = query_ptr + head * RANK * 2 * HEAD_DIM
    key = key_ptr + (head // HEADS * 2 * HEAD_DIM + d)[:, None] * RANK
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    gated, position = tl.load(gated_ptr + t), tl.load(positions_ptr + t).to(tl.int32)
    if PDL:
        gdc_wait()
    row = t.to(tl.int64) * tl.num_programs(1) + head
    width = tl.num_programs(1) // HEADS * (HEADS + 2) * HEAD_DIM
    own = qkv_ptr + t.to(tl.int64) * width + head * HEAD_DIM
    q = rotated_whole(own, d, inside, cos_ptr, sin_ptr, position, HEAD_DIM).to(tl.float32)
    low, high = tl.minimum(q, 0.0), tl.maximum(q, 0.0)
    out_low, out_high = tl.zeros((DIM,), tl.float32), tl.zeros((DIM,), tl.float32)
    if gated != 0:
        for start in range(0, RANK, RANKS):
            r = start + tl.arange(0, RANKS)
            at = r[:, None] * 2 * HEAD_DIM + d[None, :]
            whole = (r < RANK)[:, None] & inside[None, :]
            hidden = tl.load(query + at, mask=whole, other=0.0).to(tl.float32) * low[None, :]
            w = tl.load(query + at + HEAD_DIM, mask=whole, other=0.0).to(tl.float32)
            hidden = tl.sum(hidden + w * high[None, :], 1).to(kind).to(tl.float32)
            whole = inside[:, None] & (r < RANK)[None, :]
            w = tl.load(key + r[None, :], mask=whole, other=0.0).to(tl.float32)
            out_low += tl.sum(w * hidden[None, :], 1)
            w = tl.load(key + HEAD_DIM * RANK + r[None, :], mask=whole, other=0.0).to(tl.float32)
            out_high += tl.sum(w * hidden[None, :], 1)
    out = out_ptr + row * 2 * HEAD_DIM + d
    tl.store(out, (out_low.to(kind).to(tl.float32) * gated).to(kind), mask=inside)
    tl.store(out + HEAD_DIM, (out_high.to(kind).to(tl.float32) * gated).to(kind), mask=inside)


def learned(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, gate: Gate, gated: Tensor
) -> Tensor:
    """`reference_pages.learned` of rotated queries: qkv [T, (H + 2K) * D] -> [T, H, 2D]."""
    (query, key), num_tokens = gate, qkv.shape[0]
    num_heads, num_kv_heads, head_dim = len(query), len(key), query.shape[2] // 2
    out = torch.empty(num_tokens, num_heads, 2 * head_dim, dtype=qkv.dtype, device=qkv.device)
    learned_kernel[(num_tokens, num_heads)](
        qkv,
        cos,
        sin,
        positions,
        query,
        key,
        gated,
        out,
        HEADS=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        DIM=power_of_two(head_dim),
        RANK=query.shape[1],
        RANKS=min(RANKS, power_of_two(query.shape[1])),
        num_warps=8,
        **overlap(qkv.device),
    )
    return out
