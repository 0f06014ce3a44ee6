# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: queries and keys rotated by their positions, keys and values stored in their pages."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_launch import overlap
from .sizes import power_of_two


@triton.jit
def rotated(at, half, inside, cos, sin):
    """Both halves of heads, rotated in fp32, in the type they are stored in."""
    kind = at.dtype.element_ty
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    return (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)


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
    PDL: tl.constexpr,
):
    """One head of one token: a query to `q`, a key or value to its page; a slot below 0 is none."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, HALF)
    half = head_dim // 2
    inside = at < half
    source = qkv_ptr + (t * (num_heads + 2 * num_kv_heads) + head) * head_dim + at
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(slots_ptr + t)
    if head < num_heads + num_kv_heads:
        position = tl.load(positions_ptr + t)
        cos = tl.load(cos_ptr + position * half + at, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + position * half + at, mask=inside, other=0.0)
        a, b = rotated(source, half, inside, cos, sin)
    else:
        a = tl.load(source, mask=inside, other=0.0)
        b = tl.load(source + half, mask=inside, other=0.0)
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
        **overlap(qkv.device),
    )
    return q


@triton.jit
def rotated_whole(at, d, inside, cos_ptr, sin_ptr, position, HEAD_DIM: tl.constexpr):
    """The same of whole heads, which begin at `at`: dimensions d, those inside."""
    half: tl.constexpr = HEAD_DIM // 2
    own = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(at + (d + half) % HEAD_DIM, mask=inside, other=0.0).to(tl.float32)
    angle = position * half + d % half
    cos = tl.load(cos_ptr + angle, mask=d < HEAD_DIM, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=d < HEAD_DIM, other=0.0)
    return (own * cos + tl.where(d < half, -other, other) * sin).to(at.dtype.element_ty)


@triton.jit
def rotated_queries(
    qkv_ptr, cos_ptr, sin_ptr, position, t, kv_head, num_kv_heads, g, d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The queries g of one token's K/V head from what was projected: [g, d], 0 beyond HEADS and
    HEAD_DIM."""
    heads = qkv_ptr + t.to(tl.int64) * (HEADS + 2) * num_kv_heads * HEAD_DIM
    heads += (kv_head * HEADS + g)[:, None] * HEAD_DIM
    inside = (g < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
    return rotated_whole(heads, d[None, :], inside, cos_ptr, sin_ptr, position, HEAD_DIM)


@triton.jit
def store_own(
    source,
    k_ptr,
    v_ptr,
    cos,
    sin,
    slot,
    kv_head,
    num_kv_heads,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
):
    """A token's own key, rotated, in halves, and its value, from what was projected to its page; a
    slot below 0 is none."""
    half: tl.constexpr = HEAD_DIM // 2
    h = tl.arange(0, HALF)
    d = tl.arange(0, DIM)
    row = (slot // PAGE * num_kv_heads + kv_head) * PAGE + slot % PAGE
    k1, k2 = rotated(source + h, half, h < half, cos, sin)
    v = tl.load(source + num_kv_heads * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
    tl.store(k_ptr + row * HEAD_DIM + h, k1, mask=(slot >= 0) & (h < half))
    tl.store(k_ptr + row * HEAD_DIM + half + h, k2, mask=(slot >= 0) & (h < half))
    tl.store(v_ptr + row * HEAD_DIM + d, v, mask=(slot >= 0) & (d < HEAD_DIM))
    return k1, k2, v
