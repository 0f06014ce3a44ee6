# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: which pages a token reads: `reference_pages.choose`.

Many programs estimate a token's pages, one then chooses among them for each K/V head. Nothing has a
shape that depends on data, and the host is asked for nothing, so a graph holds all of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import PageBudgets
from .gpu_attention import num_splits_for
from .gpu_join import LOG2_E
from .gpu_keep import keep
from .gpu_launch import overlap, run_at_once
from .gpu_rotary import rotated_queries, rotated_whole, store_own
from .gpu_summary import summarize_page
from .sizes import power_of_two

LARGE = tl.constexpr(1e30)  # no score is that far from 0
BLOCK, STAGES = 64, 2  # pages whose summaries a program reads at a time, and blocks under way


@triton.jit
def _probes(
    q, learned_ptr, row, g, d, KIND: tl.constexpr,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, LEARNED: tl.constexpr,
):  # fmt: skip
    """What smallest and largest keys are multiplied by: q [GROUP, DIM] -> the same twice."""
    low, high = tl.minimum(q.to(tl.float32), 0.0), tl.maximum(q.to(tl.float32), 0.0)
    if LEARNED:
        inside = (g < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        learned = learned_ptr + (row * HEADS + g)[:, None] * 2 * HEAD_DIM + d[None, :]
        low += tl.load(learned, mask=inside, other=0.0)
        high += tl.load(learned + HEAD_DIM, mask=inside, other=0.0)
    return low.to(KIND), high.to(KIND)


@triton.jit
def estimate_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    learned_ptr,
    k_ptr,
    v_ptr,
    summary_ptr,
    positions_ptr,
    slots_ptr,
    requests_ptr,
    tables_ptr,
    budgets_ptr,
    scores_ptr,
    sums_ptr,
    scale,
    table_width,
    window,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
    PAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    LEARNED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's HEADS queries of one K/V head against one share of its pages' summaries: the
    scores [T, K, HEADS, PAGES] of its complete pages, in powers of two, their largest one and the
    sum of what they stand for over that, [T, K, HEADS, SPLITS, 2]. One program more stores the
    token's own key and value, and the summary of the page that they fill, which nobody reads here.

    EARLY: the first summaries are asked for before this step's queries are there. That needs
    registers, and pays only where all programs run at once.
    """
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position = tl.load(positions_ptr + t).to(tl.int32)
    budget = tl.load(budgets_ptr + t)
    row = t.to(tl.int64) * num_kv_heads + kv_head
    if split == SPLITS:
        half: tl.constexpr = HEAD_DIM // 2
        h = tl.arange(0, HALF)
        slot = tl.load(slots_ptr + t)
        cos = tl.load(cos_ptr + position * half + h, mask=h < half, other=0.0)
        sin = tl.load(sin_ptr + position * half + h, mask=h < half, other=0.0)
        key = qkv_ptr + (t.to(tl.int64) * (HEADS + 2) + HEADS) * num_kv_heads * HEAD_DIM
        key += kv_head * HEAD_DIM
        if PDL:
            gdc_wait()
        place = (slot, kv_head, num_kv_heads)
        store_own(key, k_ptr, v_ptr, cos, sin, *place, PAGE, HEAD_DIM, HALF, DIM)
        d = tl.arange(0, DIM)
        own = rotated_whole(key, d, d < HEAD_DIM, cos_ptr, sin_ptr, position, HEAD_DIM)
        summarize_page(own, k_ptr, summary_ptr, *place, PAGE, HEAD_DIM, DIM)
    elif budget > 0:
        table = tables_ptr + tl.load(requests_ptr + t) * table_width
        g, d = tl.arange(0, GROUP), tl.arange(0, DIM)
        kind = summary_ptr.dtype.element_ty
        queries = (qkv_ptr, cos_ptr, sin_ptr, position, t, kv_head, num_kv_heads, g, d)
        learned = (learned_ptr, row, g, d)
        if EARLY:
            low = tl.zeros((GROUP, DIM), kind)
            high = low
        else:
            if PDL:
                gdc_wait()
            q = rotated_queries(*queries, HEADS, HEAD_DIM)
            low, high = _probes(q, *learned, kind, HEADS, HEAD_DIM, LEARNED)
        first = tl.maximum(position + 1 - window, 0) // PAGE
        num_pages = position // PAGE - first
        share = tl.cdiv(tl.cdiv(num_pages, BLOCK), SPLITS) * BLOCK
        end = tl.minimum((split + 1) * share, num_pages)
        peak = tl.full((GROUP,), -LARGE, tl.float32)
        total = tl.zeros((GROUP,), tl.float32)
        for begin in tl.range(split * share, end, BLOCK, num_stages=STAGES):
            p = begin + tl.arange(0, BLOCK)
            page = tl.load(table + first + p, mask=p < num_pages, other=0).to(tl.int64)
            place = (page * num_kv_heads + kv_head)[:, None] * 2 * HEAD_DIM + d[None, :]
            whole = (p < num_pages)[:, None] & (d < HEAD_DIM)[None, :]
            smallest = tl.load(summary_ptr + place, mask=whole, other=0.0)
            largest = tl.load(summary_ptr + place + HEAD_DIM, mask=whole, other=0.0)
            if EARLY and begin == split * share:
                if PDL:
                    gdc_wait()
                q = rotated_queries(*queries, HEADS, HEAD_DIM)
                low, high = _probes(q, *learned, kind, HEADS, HEAD_DIM, LEARNED)
            scores = tl.dot(low, tl.trans(smallest), input_precision="ieee")
            scores = tl.dot(high, tl.trans(largest), scores, input_precision="ieee") * scale
            seen = (g < HEADS)[:, None] & (p < num_pages)[None, :]
            tl.store(
                scores_ptr + (row * HEADS + g)[:, None] * PAGES + p[None, :], scores, mask=seen
            )
            scores = tl.where((p < num_pages)[None, :], scores, -LARGE)
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            total = total * tl.exp2(peak - new_peak)
            total += tl.sum(tl.exp2(scores - new_peak[:, None]), 1)
            peak = new_peak
        if PDL:
            gdc_wait()  # for who had no pages
        out = sums_ptr + 2 * ((row * HEADS + g) * SPLITS + split)
        tl.store(out, peak, mask=g < HEADS)
        tl.store(out + 1, total, mask=g < HEADS)


def choose(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    learned: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    summary: Tensor,
    positions: Tensor,
    slots: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    budgets: PageBudgets,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """`reference.rotate_and_store`, `reference_pages.summarize` and `choose` for tokens that are
    the last of their requests' in the step; qkv [T, (H + 2K) * D] and learned [T, H, 2D], the
    gate's part of what summaries are multiplied by. The pages that each token reads, in the order
    of its context, [T, K, a power of two] int32, and their number [T, K] int32; 0: all."""
    num_tokens, device = qkv.shape[0], qkv.device
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    width = power_of_two(page_tables.shape[1])
    splits, block = _shares(num_tokens, num_kv_heads, width)
    shape = (num_tokens, num_kv_heads, group)
    scores = torch.empty(*shape, width, dtype=torch.float32, device=device)
    sums = torch.empty(*shape, splits, 2, dtype=torch.float32, device=device)
    estimate_kernel[(num_tokens, num_kv_heads, splits + 1)](
        qkv,
        cos,
        sin,
        qkv if learned is None else learned,
        k_cache,
        v_cache,
        summary,
        positions,
        slots,
        request_ids,
        page_tables,
        budgets.pages,
        scores,
        sums,
        scale * LOG2_E,
        page_tables.stride(0),
        2**30 if window is None else window,
        PAGE=page_size,
        HEADS=group,
        GROUP=max(16, power_of_two(group)),
        HEAD_DIM=head_dim,
        HALF=power_of_two(head_dim // 2),
        DIM=max(16, power_of_two(head_dim)),
        PAGES=width,
        SPLITS=splits,
        BLOCK=block,
        STAGES=STAGES,
        EARLY=run_at_once(num_tokens * num_kv_heads * splits, device),
        LEARNED=learned is not None,
        num_warps=4,
        **overlap(device),
    )
    places = (positions, request_ids, page_tables)
    return keep(scores, sums, *places, budgets, page_size, window)


def _shares(num_tokens: int, num_kv_heads: int, num_pages: int) -> tuple[int, int]:
    """Programs that share one token's pages, and how many they take at a time: of the step's shape
    alone, so that graphs hold."""
    wanted = num_splits_for(num_tokens, num_kv_heads)
    block = BLOCK if num_pages >= wanted * BLOCK else BLOCK // 2
    return min(wanted, -(-num_pages // block)), block
