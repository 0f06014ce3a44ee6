# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: rotate and store keys and values; attend over pages for tokens that stand alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import power_of_two

MAX_SPLITS = 32
TARGET_PROGRAMS = 264  # two for each of a Hopper's multiprocessors
BLOCK = 64  # positions at a time


@triton.jit
def rotate_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    num_heads,
    num_kv_heads,
    page_size,
    head_dim,
    HALF: tl.constexpr,
):
    """One head of one token: a query to `q`, a key or value to its page; a slot below 0 is none."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, HALF)
    half = head_dim // 2
    inside = at < half
    source = qkv_ptr + (t * (num_heads + 2 * num_kv_heads) + head) * head_dim + at
    a = tl.load(source, mask=inside, other=0.0)
    b = tl.load(source + half, mask=inside, other=0.0)
    slot = tl.load(slots_ptr + t)
    kind = q_ptr.dtype.element_ty
    if head < num_heads + num_kv_heads:
        position = tl.load(positions_ptr + t)
        cos = tl.load(cos_ptr + position * half + at, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + position * half + at, mask=inside, other=0.0)
        a32, b32 = a.to(tl.float32), b.to(tl.float32)
        a, b = (a32 * cos - b32 * sin).to(kind), (b32 * cos + a32 * sin).to(kind)
    page, offset = slot // page_size, slot % page_size
    if head < num_heads:
        target = q_ptr + (t * num_heads + head) * head_dim + at
        tl.store(target, a, mask=inside)
        tl.store(target + half, b, mask=inside)
    elif head < num_heads + num_kv_heads:
        row = (page * num_kv_heads + head - num_heads) * page_size + offset
        tl.store(k_ptr + row * head_dim + at, a, mask=inside & (slot >= 0))
        tl.store(k_ptr + row * head_dim + half + at, b, mask=inside & (slot >= 0))
    else:
        row = (page * num_kv_heads + head - num_heads - num_kv_heads) * page_size + offset
        tl.store(v_ptr + row * head_dim + at, a, mask=inside & (slot >= 0))
        tl.store(v_ptr + row * head_dim + half + at, b, mask=inside & (slot >= 0))


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    slots: Tensor,
) -> Tensor:
    """`reference.rotate_and_store`."""
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = torch.empty(qkv.shape[0], num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    rotate_kernel[(qkv.shape[0], num_heads + 2 * num_kv_heads)](
        qkv,
        cos,
        sin,
        positions,
        slots,
        q,
        k_cache,
        v_cache,
        num_heads,
        num_kv_heads,
        page_size,
        head_dim,
        HALF=power_of_two(head_dim // 2),
        num_warps=1,
    )
    return q


@triton.jit
def attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    requests_ptr,
    tables_ptr,
    partial_ptr,
    sums_ptr,
    scale,
    num_heads,
    num_kv_heads,
    page_size,
    head_dim,
    table_width,
    window,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's queries of one K/V head over one share of its positions.

    Leaves the weighted sum of the values, the largest score and the sum of the weights.
    """
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(2)
    position = tl.load(positions_ptr + t).to(tl.int32)
    first = tl.maximum(position + 1 - window, 0) // BLOCK
    share = tl.cdiv(position // BLOCK + 1 - first, num_splits)
    begin = first + split * share
    end = tl.minimum(begin + share, position // BLOCK + 1)
    group = num_heads // num_kv_heads
    g = tl.arange(0, GROUP)
    d = tl.arange(0, DIM)
    heads = t.to(tl.int64) * num_heads + kv_head * group + g
    whole_q = (g[:, None] < group) & (d[None, :] < head_dim)
    q = tl.load(q_ptr + heads[:, None] * head_dim + d[None, :], mask=whole_q, other=0.0)
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    for block in range(begin, end):
        at = block * BLOCK + tl.arange(0, BLOCK)
        visible = (at <= position) & (at > position - window)
        page = tl.load(table + at // page_size, mask=at <= position, other=0).to(tl.int64)
        row = (page * num_kv_heads + kv_head) * page_size + at % page_size
        place = row[:, None] * head_dim + d[None, :]
        whole = visible[:, None] & (d[None, :] < head_dim)
        k = tl.load(k_ptr + place, mask=whole, other=0.0)
        v = tl.load(v_ptr + place, mask=whole, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(visible[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        safe = tl.where(new_best == float("-inf"), 0.0, new_best)
        p = tl.exp(scores - safe[:, None])
        shrink = tl.exp(best - safe)
        weight = weight * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        best = new_best
    place = heads * num_splits + split
    tl.store(partial_ptr + place[:, None] * head_dim + d[None, :], acc, mask=whole_q)
    tl.store(sums_ptr + 2 * place, best, mask=g < group)
    tl.store(sums_ptr + 2 * place + 1, weight, mask=g < group)


@triton.jit
def combine_kernel(
    partial_ptr, sums_ptr, out_ptr, num_splits, head_dim, SPLITS: tl.constexpr, DIM: tl.constexpr
):
    """One head's shares joined."""
    head = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, DIM)
    place = head * num_splits + s
    best = tl.load(sums_ptr + 2 * place, mask=s < num_splits, other=float("-inf"))
    weight = tl.load(sums_ptr + 2 * place + 1, mask=s < num_splits, other=0.0)
    factor = tl.exp(best - tl.max(best, 0))
    parts = tl.load(
        partial_ptr + place[:, None] * head_dim + d[None, :],
        mask=(s[:, None] < num_splits) & (d[None, :] < head_dim),
        other=0.0,
    )
    out = tl.sum(parts * factor[:, None], 0) / tl.sum(weight * factor, 0)
    tl.store(out_ptr + head * head_dim + d, out.to(out_ptr.dtype.element_ty), mask=d < head_dim)


def num_splits_for(num_tokens: int, num_kv_heads: int) -> int:
    """Programs that share one token's positions: of the token count alone, so that graphs hold."""
    wanted = max(1, TARGET_PROGRAMS // (num_tokens * num_kv_heads))
    return min(MAX_SPLITS, power_of_two(wanted + 1) // 2)


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """`reference.attend`, each token by itself: right for any batch, fast where T is about B."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    num_splits = num_splits_for(num_tokens, num_kv_heads)
    shape = (num_tokens, num_heads, num_splits)
    partial = torch.empty(*shape, head_dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(*shape, 2, dtype=torch.float32, device=q.device)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=q.dtype, device=q.device)
    dim = max(16, power_of_two(head_dim))
    attend_kernel[(num_tokens, num_kv_heads, num_splits)](
        q,
        k_cache,
        v_cache,
        positions,
        request_ids,
        page_tables,
        partial,
        sums,
        scale,
        num_heads,
        num_kv_heads,
        page_size,
        head_dim,
        page_tables.stride(0),
        2**30 if window is None else window,
        GROUP=max(16, power_of_two(num_heads // num_kv_heads)),
        DIM=dim,
        BLOCK=BLOCK,
        num_warps=4,
        num_stages=3 if q.element_size() == 2 else 2,
    )
    combine_kernel[(num_tokens * num_heads,)](
        partial,
        sums,
        out,
        num_splits,
        head_dim,
        SPLITS=power_of_two(num_splits),
        DIM=dim,
        num_warps=1,
    )
    return out
