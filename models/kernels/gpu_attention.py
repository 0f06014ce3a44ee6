# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: rotate queries and keys, store keys and values, and attend over pages: in one kernel
where every token is a request's only one, as when decoding."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_join import take, write
from .gpu_launch import counters, multiprocessors, overlap
from .gpu_pages import summarize_page
from .sizes import power_of_two

MAX_SPLITS = 32
TARGET_PROGRAMS = 512
BLOCK, STAGES = 64, 2  # positions at a time, and blocks under way
LOG2_E = 1.4426950408889634


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
        **overlap(qkv.device),
    )
    return q


@triton.jit
def _rotated(at, half, inside, cos, sin):
    """Both halves of heads, rotated in fp32, in the type they are stored in."""
    kind = at.dtype.element_ty
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    return (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)


@triton.jit
def _block(
    k_ptr,
    v_ptr,
    table,
    block,
    last,
    kv_head,
    num_kv_heads,
    page_size,
    window,
    position,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of positions up to `last`: the keys' two halves, the values, which are seen."""
    half: tl.constexpr = HEAD_DIM // 2
    h = tl.arange(0, HALF)
    d = tl.arange(0, DIM)
    at = block * BLOCK + tl.arange(0, BLOCK)
    page = tl.load(table + at // page_size, mask=at <= last, other=0).to(tl.int64)
    row = ((page * num_kv_heads + kv_head) * page_size + at % page_size) * HEAD_DIM
    seen = (at <= last) & (at > position - window)
    keys = k_ptr + row[:, None] + h[None, :]
    if half == HALF:  # what is not seen is no part of a score
        k1 = tl.load(keys)
        k2 = tl.load(keys + half)
    else:
        k1 = tl.load(keys, mask=(h < half)[None, :], other=0.0)
        k2 = tl.load(keys + half, mask=(h < half)[None, :], other=0.0)
    whole_v = seen[:, None] & (d < HEAD_DIM)[None, :]
    v = tl.load(v_ptr + row[:, None] + d[None, :], mask=whole_v, other=0.0)
    return k1, k2, v, seen


@triton.jit
def _store_own(
    source,
    k_ptr,
    v_ptr,
    slot,
    cos,
    sin,
    kv_head,
    num_kv_heads,
    page_size,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
):
    """A token's own key, rotated, in halves, and its value, from what was projected to its page; a
    slot below 0 is none."""
    half: tl.constexpr = HEAD_DIM // 2
    h = tl.arange(0, HALF)
    d = tl.arange(0, DIM)
    row = (slot // page_size * num_kv_heads + kv_head) * page_size + slot % page_size
    k1, k2 = _rotated(source + h, half, h < half, cos, sin)
    v = tl.load(source + num_kv_heads * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
    tl.store(k_ptr + row * HEAD_DIM + h, k1, mask=(slot >= 0) & (h < half))
    tl.store(k_ptr + row * HEAD_DIM + half + h, k2, mask=(slot >= 0) & (h < half))
    tl.store(v_ptr + row * HEAD_DIM + d, v, mask=(slot >= 0) & (d < HEAD_DIM))
    return k1, k2, v


@triton.jit
def decode_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    slots_ptr,
    requests_ptr,
    tables_ptr,
    partial_ptr,
    sums_ptr,
    counter_ptr,
    out_ptr,
    summary_ptr,
    scale,
    num_kv_heads,
    page_size,
    table_width,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    JOINED: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's HEADS queries of one K/V head over one share of its positions; the last program
    of a head joins the shares. Who has the token's own position stores its key and value and,
    where PAGE is a page's size and not 0, the summary of the page that it fills.

    EARLY: the first block is asked for before this step's queries, keys and values are there, and
    so the token's own are taken from where they come from. That needs registers, and pays only
    where all programs run at once.
    """
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    half: tl.constexpr = HEAD_DIM // 2
    g = tl.arange(0, GROUP)
    h = tl.arange(0, HALF)
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position = tl.load(positions_ptr + t).to(tl.int32)
    slot = tl.load(slots_ptr + t)
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    cos = tl.load(cos_ptr + position * half + h, mask=h < half, other=0.0)
    sin = tl.load(sin_ptr + position * half + h, mask=h < half, other=0.0)
    first = tl.maximum(position + 1 - window, 0) // BLOCK
    share = tl.cdiv(position // BLOCK + 1 - first, SPLITS)
    begin = first + split * share
    end = tl.minimum(begin + share, position // BLOCK + 1)
    shape = (kv_head, num_kv_heads, page_size, window, position)

    num_heads = num_kv_heads * HEADS
    qkv = qkv_ptr + t.to(tl.int64) * (num_heads + 2 * num_kv_heads) * HEAD_DIM
    queries = qkv + (kv_head * HEADS + g)[:, None] * HEAD_DIM + h[None, :]
    whole_q = (g < HEADS)[:, None] & (h < half)[None, :]
    source = qkv + (num_heads + kv_head) * HEAD_DIM

    own = (source, k_ptr, v_ptr, slot, cos, sin, kv_head, num_kv_heads, page_size)
    has_own = (begin < end) & (end == position // BLOCK + 1)
    if EARLY:
        q1 = tl.zeros((GROUP, HALF), qkv_ptr.dtype.element_ty)
        q2 = q1
    else:
        if PDL:
            gdc_wait()
        q1, q2 = _rotated(queries, half, whole_q, cos[None, :], sin[None, :])
        if has_own:
            _store_own(*own, HEAD_DIM, HALF, DIM)
            tl.debug_barrier()  # other threads of this program read them

    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    last = position - 1 if EARLY else position
    for block in tl.range(begin, end, num_stages=STAGES):
        k1, k2, v, seen = _block(
            k_ptr, v_ptr, table, block, last, *shape, HEAD_DIM, HALF, DIM, BLOCK
        )
        if EARLY and block == begin:
            if PDL:
                gdc_wait()
            q1, q2 = _rotated(queries, half, whole_q, cos[None, :], sin[None, :])
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale
        best, weight, acc = take(scores, seen, v, best, weight, acc)
    if EARLY:
        if PDL:
            gdc_wait()  # for who had no block
        if has_own:
            k1, k2, v = _store_own(*own, HEAD_DIM, HALF, DIM)
            score = tl.sum(q1.to(tl.float32) * k1.to(tl.float32)[None, :], 1)
            score = (score + tl.sum(q2.to(tl.float32) * k2.to(tl.float32)[None, :], 1)) * scale
            new_best = tl.maximum(best, score)
            p = tl.exp2(score - new_best)
            shrink = tl.exp2(best - new_best)
            weight = weight * shrink + p
            p = p.to(v.dtype).to(tl.float32)
            acc = acc * shrink[:, None] + p[:, None] * v.to(tl.float32)[None, :]
            best = new_best
    if PAGE > 0 and has_own:
        tl.debug_barrier()  # other threads of this program have stored the key
        page = (slot, kv_head, num_kv_heads)
        summarize_page(k_ptr, summary_ptr, *page, PAGE, ROWS, HEAD_DIM, DIM)

    row = t.to(tl.int64) * num_kv_heads + kv_head
    write(
        out_ptr, partial_ptr, sums_ptr, counter_ptr, row, split, best, weight, acc,
        HEADS, GROUP, JOINED, HEAD_DIM, DIM, SPLITS,
    )  # fmt: skip


def num_splits_for(num_tokens: int, num_kv_heads: int) -> int:
    """Programs that share one token's positions: of the token count alone, so that graphs hold."""
    wanted = max(1, TARGET_PROGRAMS // (num_tokens * num_kv_heads))
    return min(MAX_SPLITS, power_of_two(wanted + 1) // 2)


def decode(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    slots: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    scale: float,
    window: int | None,
    summary: Tensor | None = None,
) -> Tensor:
    """`reference.attention` for a step with one token of each request, and where there are
    summaries of pages, `reference_pages.summarize`."""
    num_tokens, device = qkv.shape[0], qkv.device
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    splits = num_splits_for(num_tokens, num_kv_heads)
    dim = max(16, power_of_two(head_dim))
    places = num_tokens * num_heads * splits
    partial = torch.empty(places, dim, dtype=torch.float32, device=device)
    sums = torch.empty(places, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=qkv.dtype, device=device)
    decode_kernel[(num_tokens, num_kv_heads, splits)](
        qkv,
        cos,
        sin,
        k_cache,
        v_cache,
        positions,
        slots,
        request_ids,
        page_tables,
        partial,
        sums,
        counters(device),
        out,
        out if summary is None else summary,
        scale * LOG2_E,
        num_kv_heads,
        page_size,
        page_tables.stride(0),
        2**30 if window is None else window,
        HEADS=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        GROUP=max(16, power_of_two(num_heads // num_kv_heads)),
        JOINED=power_of_two(num_heads // num_kv_heads),
        HALF=max(16, power_of_two(head_dim // 2)),
        DIM=dim,
        SPLITS=splits,
        BLOCK=BLOCK if splits > 1 else 2 * BLOCK,
        STAGES=STAGES,
        PAGE=0 if summary is None else page_size,
        ROWS=power_of_two(page_size),
        EARLY=num_tokens * num_kv_heads * splits <= 2 * multiprocessors(device),
        num_warps=4,
        **overlap(device),
    )
    return out
