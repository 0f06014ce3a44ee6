# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: attention of single tokens over the pages that were chosen for them."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_attention import BLOCK, num_splits_for
from .gpu_join import LOG2_E, take, write
from .gpu_launch import counters, overlap
from .gpu_rotary import rotated_queries
from .sizes import power_of_two

STAGES = 2  # blocks under way


@triton.jit
def chosen_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    requests_ptr,
    tables_ptr,
    budgets_ptr,
    pages_ptr,
    counts_ptr,
    partial_ptr,
    sums_ptr,
    counter_ptr,
    out_ptr,
    scale,
    table_width,
    pages_width,
    window,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    JOINED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's HEADS queries of one K/V head over every so many-th block of its pages, which lie
    one after the other as if there were no others; a count of 0 is all that it sees. The last
    program of a head joins the shares.

    The blocks follow from the budget, which is there before the choice is: so pages are asked for
    beside their number.
    """
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    row = t.to(tl.int64) * num_kv_heads + kv_head
    g, d = tl.arange(0, GROUP), tl.arange(0, DIM)
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position = tl.load(positions_ptr + t).to(tl.int32)
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    budget = tl.load(budgets_ptr + t)
    first = tl.maximum(position + 1 - window, 0) // PAGE
    num_pages = position // PAGE + 1 - first
    most = tl.where(budget == 0, num_pages, tl.minimum(budget, num_pages))
    num_shares = tl.minimum(SPLITS, tl.cdiv(most * PAGE, BLOCK))
    if split >= num_shares:
        return
    listed = tl.where(budget == 0, table + first, pages_ptr + row * pages_width)
    if PDL:
        gdc_wait()
    queries = (qkv_ptr, cos_ptr, sin_ptr, position, t, kv_head, num_kv_heads, g, d)
    q = rotated_queries(*queries, HEADS, HEAD_DIM)
    count = tl.load(counts_ptr + row)
    count = tl.where(count == 0, num_pages, count)

    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    for block in tl.range(split, tl.cdiv(most * PAGE, BLOCK), SPLITS, num_stages=STAGES):
        i = block * BLOCK + tl.arange(0, BLOCK)
        at, offset = i // PAGE, i % PAGE
        page = tl.load(listed + at, mask=at < most, other=0)
        seen = at < count  # in full, but for the last page and the first that a window leaves
        seen &= (at < count - 1) | (offset <= position % PAGE)
        seen &= (at > 0) | (first * PAGE + offset > position - window)
        page = tl.where(seen, page, 0).to(tl.int64)
        place = ((page * num_kv_heads + kv_head) * PAGE + offset)[:, None] * HEAD_DIM + d[None, :]
        whole = seen[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(k_ptr + place, mask=whole, other=0.0)
        v = tl.load(v_ptr + place, mask=whole, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        best, weight, acc = take(scores, seen, v, best, weight, acc)

    write(
        out_ptr, partial_ptr, sums_ptr, counter_ptr, row, split, num_shares,
        best, weight, acc, HEADS, GROUP, JOINED, HEAD_DIM, DIM, SPLITS,
    )  # fmt: skip


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    budgets: Tensor,
    pages: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """`reference_pages.attend_chosen` of rotated queries, and all of the context where there is no
    budget: qkv [T, (H + 2K) * D], budgets [T] in pages -> [T, H * D]; pages and counts as
    `gpu_pages.choose` gives them."""
    num_tokens, device = qkv.shape[0], qkv.device
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    splits = num_splits_for(num_tokens, num_kv_heads)
    dim = max(16, power_of_two(head_dim))
    places = num_tokens * num_heads * splits
    partial = torch.empty(places, dim, dtype=torch.float32, device=device)
    sums = torch.empty(places, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=qkv.dtype, device=device)
    chosen_kernel[(num_tokens, num_kv_heads, splits)](
        qkv,
        cos,
        sin,
        k_cache,
        v_cache,
        positions,
        request_ids,
        page_tables,
        budgets,
        pages,
        counts,
        partial,
        sums,
        counters(device),
        out,
        scale * LOG2_E,
        page_tables.stride(0),
        pages.shape[2],
        2**30 if window is None else window,
        PAGE=page_size,
        HEADS=group,
        GROUP=max(16, power_of_two(group)),
        JOINED=power_of_two(group),
        HEAD_DIM=head_dim,
        DIM=dim,
        SPLITS=splits,
        BLOCK=BLOCK,
        STAGES=STAGES,
        num_warps=4,
        **overlap(device),
    )
    return out
