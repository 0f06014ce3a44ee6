# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: the summaries of K/V pages, and which pages a token reads: `reference_pages`.

Many programs estimate a token's pages, one then chooses among them for each K/V head. Nothing has a
shape that depends on data, and the host is asked for nothing, so a graph holds all of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import PageBudgets
from .gpu_launch import multiprocessors, overlap
from .sizes import power_of_two

LOG2_E = 1.4426950408889634
TARGET_PROGRAMS = 1024
MAX_SPLITS = 32
BLOCK, STAGES = 64, 2  # pages whose summaries a program reads at a time, and blocks under way


@triton.jit
def summarize_page(
    k_ptr, summary_ptr, slot, head, num_kv_heads,
    PAGE: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the summary of a slot's page if the slot is its last one; a slot below 0 is none."""
    if (slot >= 0) & (slot % PAGE == PAGE - 1):
        row = slot // PAGE * num_kv_heads + head
        d = tl.arange(0, DIM)
        i = tl.minimum(tl.arange(0, ROWS), PAGE - 1)
        inside = d < HEAD_DIM
        place = (row * PAGE + i[:, None]) * HEAD_DIM + d[None, :]
        keys = tl.load(k_ptr + place, mask=inside[None, :], other=0.0)
        kind = summary_ptr.dtype.element_ty
        out = summary_ptr + row * 2 * HEAD_DIM + d
        tl.store(out, tl.min(keys.to(tl.float32), 0).to(kind), mask=inside)
        tl.store(out + HEAD_DIM, tl.max(keys.to(tl.float32), 0).to(kind), mask=inside)


@triton.jit
def summarize_kernel(
    k_ptr, summary_ptr, slots_ptr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One token, one K/V head."""
    t, head = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(slots_ptr + t)
    summarize_page(k_ptr, summary_ptr, slot, head, tl.num_programs(1), PAGE, ROWS, HEAD_DIM, DIM)


def summarize(k_cache: Tensor, summary: Tensor, slots: Tensor) -> None:
    """`reference_pages.summarize`."""
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    summarize_kernel[(slots.shape[0], num_kv_heads)](
        k_cache,
        summary,
        slots,
        PAGE=page_size,
        ROWS=power_of_two(page_size),
        HEAD_DIM=head_dim,
        DIM=power_of_two(head_dim),
        num_warps=4,
        **overlap(k_cache.device),
    )


@triton.jit
def _pages_of(position, page_size, window):
    """The first page that a token sees a part of, and the one it stands in."""
    return tl.maximum(position + 1 - window, 0) // page_size, position // page_size


@triton.jit
def _probes(
    q_ptr, learned_ptr, heads, inside, d, KIND: tl.constexpr,
    HEAD_DIM: tl.constexpr, LEARNED: tl.constexpr,
):  # fmt: skip
    """What smallest and largest keys are multiplied by: [GROUP, DIM] both."""
    q = tl.load(q_ptr + heads[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
    low, high = tl.minimum(q.to(tl.float32), 0.0), tl.maximum(q.to(tl.float32), 0.0)
    if LEARNED:
        learned = learned_ptr + heads[:, None] * 2 * HEAD_DIM + d[None, :]
        low += tl.load(learned, mask=inside, other=0.0)
        high += tl.load(learned + HEAD_DIM, mask=inside, other=0.0)
    return low.to(KIND), high.to(KIND)


@triton.jit
def estimate_kernel(
    q_ptr,
    learned_ptr,
    k_ptr,
    summary_ptr,
    positions_ptr,
    slots_ptr,
    requests_ptr,
    tables_ptr,
    budgets_ptr,
    scores_ptr,
    scale,
    table_width,
    window,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    LEARNED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's HEADS queries of one K/V head against one share of its pages' summaries: the
    scores [T, K, HEADS, PAGES] of its complete pages, in powers of two.

    EARLY: the first summaries are asked for before this step's queries are there. That needs
    registers, and pays only where all programs run at once. The first of the programs summarises
    the page that the token fills, which nobody else reads.
    """
    t, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position, slot = tl.load(positions_ptr + t).to(tl.int32), tl.load(slots_ptr + t)
    budget = tl.load(budgets_ptr + t)
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    first, last = _pages_of(position, PAGE, window)
    if budget > 0:
        g, d = tl.arange(0, GROUP), tl.arange(0, DIM)
        inside = (g < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        heads = (t.to(tl.int64) * num_kv_heads + head) * HEADS + g
        kind = summary_ptr.dtype.element_ty
        queries = (q_ptr, learned_ptr, heads, inside, d)
        if EARLY:
            low = tl.zeros((GROUP, DIM), kind)
            high = low
        else:
            if PDL:
                gdc_wait()
            low, high = _probes(*queries, kind, HEAD_DIM, LEARNED)
        num_pages = last - first
        share = tl.cdiv(tl.cdiv(num_pages, BLOCK), tl.num_programs(2)) * BLOCK
        end = tl.minimum((split + 1) * share, num_pages)
        for begin in tl.range(split * share, end, BLOCK, num_stages=STAGES):
            p = begin + tl.arange(0, BLOCK)
            page = tl.load(table + first + p, mask=p < num_pages, other=0).to(tl.int64)
            place = (page * num_kv_heads + head)[:, None] * 2 * HEAD_DIM + d[None, :]
            whole = (p < num_pages)[:, None] & (d < HEAD_DIM)[None, :]
            smallest = tl.load(summary_ptr + place, mask=whole, other=0.0)
            largest = tl.load(summary_ptr + place + HEAD_DIM, mask=whole, other=0.0)
            if EARLY and begin == split * share:
                if PDL:
                    gdc_wait()
                low, high = _probes(*queries, kind, HEAD_DIM, LEARNED)
            scores = tl.dot(low, tl.trans(smallest), input_precision="ieee")
            scores = tl.dot(high, tl.trans(largest), scores, input_precision="ieee") * scale
            out = scores_ptr + heads[:, None] * PAGES + p[None, :]
            tl.store(out, scores, mask=(g < HEADS)[:, None] & (p < num_pages)[None, :])
    if PDL:
        gdc_wait()  # for who had no pages
    if split == 0:
        summarize_page(k_ptr, summary_ptr, slot, head, num_kv_heads, PAGE, ROWS, HEAD_DIM, DIM)


@triton.jit
def _reached(bits, forced, inside, room, least, above):
    """The largest bound that `room` estimates reach or, of bounds that just as many reach, any.
    `least` is reached by so many, `above` is not. Three bounds are tried at once, their counts
    side by side in one sum."""
    while above - least > 1:
        width = (above - least).to(tl.int64)
        low = least + (width // 4).to(tl.int32)
        middle = least + (width // 2).to(tl.int32)
        high = least + (width * 3 // 4).to(tl.int32)
        counts = (forced | (inside & (bits >= low))).to(tl.int64)
        counts += (forced | (inside & (bits >= middle))).to(tl.int64) << 20
        counts += (forced | (inside & (bits >= high))).to(tl.int64) << 40
        count = tl.sum(counts, 0)
        of_low, of_middle, of_high = count & 0xFFFFF, (count >> 20) & 0xFFFFF, count >> 40
        if of_high >= room:
            least = high
            above = tl.where(of_high == room, high, above)
        elif of_middle >= room:
            least = middle
            above = tl.where(of_middle == room, middle, high)
        elif of_low >= room:
            least = low
            above = tl.where(of_low == room, low, middle)
        else:
            above = low
    return least


@triton.jit
def _reached_by_share(bits, mass, forced, inside, room, enough, least, above):
    """The same, or by estimates that add up to `enough`."""
    while above - least > 1:
        middle = least + (above - least) // 2
        kept = forced | (inside & (bits >= middle))
        suffices = tl.sum(kept.to(tl.int32), 0) >= room
        suffices = suffices | (tl.sum(tl.where(kept, mass, 0.0), 0) >= enough)
        least = tl.where(suffices, middle, least)
        above = tl.where(suffices, above, middle)
    return least


@triton.jit
def keep_kernel(
    scores_ptr,
    positions_ptr,
    requests_ptr,
    tables_ptr,
    budgets_ptr,
    shares_ptr,
    columns_ptr,
    pages_ptr,
    counts_ptr,
    table_width,
    window,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's choice of pages for one K/V head: their places in the table, and what stands
    there.

    Estimates are not negative, so the order of their bits is theirs: a bound that just enough of
    them reach is searched for by halves, and nothing is sorted.
    """
    t, head = tl.program_id(0), tl.program_id(1)
    row = t.to(tl.int64) * tl.num_programs(1) + head
    if PDL:
        gdc_launch_dependents()
    position = tl.load(positions_ptr + t).to(tl.int32)
    budget, enough = tl.load(budgets_ptr + t), tl.load(shares_ptr + t)
    first, last = _pages_of(position, PAGE, window)
    num_pages = last - first
    p = tl.arange(0, PAGES)
    inside = p < num_pages
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    page = tl.load(table + first + p, mask=inside & (budget > 0), other=0)
    if PDL:
        gdc_wait()
    if budget == 0:
        tl.store(counts_ptr + row, 0)
    else:
        g = tl.arange(0, GROUP)
        place = scores_ptr + (row * HEADS + g)[:, None] * PAGES + p[None, :]
        whole = (g < HEADS)[:, None] & inside[None, :]
        scores = tl.load(place, mask=whole, other=float("-inf"))
        peaks = tl.max(scores, 1)
        weights = tl.exp2(scores - tl.where(peaks > float("-inf"), peaks, 0.0)[:, None])
        weights /= tl.maximum(tl.sum(weights, 1), 1e-30)[:, None] * HEADS
        mass = tl.sum(weights, 0)
        bits = mass.to(tl.int32, bitcast=True)
        forced = inside & ((p == 0) | (p == num_pages - 1))
        room = tl.minimum(budget - 1, num_pages)
        least = tl.min(tl.where(inside, bits, 0x7F800000), 0)
        above = tl.max(tl.where(inside, bits, 0), 0) + 2
        if enough < 1:
            least = _reached_by_share(bits, mass, forced, inside, room, enough, least, above)
        elif room < num_pages:
            least = _reached(bits, forced, inside, room, least, above)
        kept = forced | (inside & (bits > least))
        equal = inside & (bits == least) & (kept == 0)
        num_equal = room - tl.sum(kept.to(tl.int32), 0)
        kept = kept | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= num_equal))
        place = tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(columns_ptr + row * PAGES + place, first + p, mask=kept)
        tl.store(pages_ptr + row * PAGES + place, page, mask=kept)
        num_kept = tl.sum(kept.to(tl.int32), 0)
        tl.store(columns_ptr + row * PAGES + num_kept, last)
        tl.store(pages_ptr + row * PAGES + num_kept, tl.load(table + last))
        tl.store(counts_ptr + row, num_kept + 1)


def choose(
    q: Tensor,
    learned: Tensor | None,
    k_cache: Tensor,
    summary: Tensor,
    positions: Tensor,
    slots: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    budgets: PageBudgets,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_pages.choose` and `summarize`, for tokens that are the last of their requests' in
    the step; q [T, H, D] and learned [T, H, 2D], the gate's part of what summaries are multiplied
    by. Columns [T, K, a power of two] int32, what the table says there, counts [T, K] int32."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    group, device = num_heads // num_kv_heads, q.device
    pages = power_of_two(page_tables.shape[1])
    assert pages < 1 << 20, pages  # counts stand side by side
    scores = torch.empty(num_tokens, num_heads, pages, dtype=torch.float32, device=device)
    shape = (num_tokens, num_kv_heads, pages)
    columns, listed = (torch.empty(shape, dtype=torch.int32, device=device) for _ in range(2))
    counts = torch.empty(num_tokens, num_kv_heads, dtype=torch.int32, device=device)
    visible = 2**30 if window is None else window
    splits = _splits(num_tokens, num_kv_heads, pages)
    estimate_kernel[(num_tokens, num_kv_heads, splits)](
        q,
        q if learned is None else learned,
        k_cache,
        summary,
        positions,
        slots,
        request_ids,
        page_tables,
        budgets.pages,
        scores,
        scale * LOG2_E,
        page_tables.stride(0),
        visible,
        PAGE=page_size,
        ROWS=power_of_two(page_size),
        HEADS=group,
        GROUP=max(16, power_of_two(group)),
        HEAD_DIM=head_dim,
        DIM=max(16, power_of_two(head_dim)),
        PAGES=pages,
        BLOCK=BLOCK,
        STAGES=STAGES,
        EARLY=num_tokens * num_kv_heads * splits <= 2 * multiprocessors(device),
        LEARNED=learned is not None,
        num_warps=4,
        **overlap(device),
    )
    keep_kernel[(num_tokens, num_kv_heads)](
        scores,
        positions,
        request_ids,
        page_tables,
        budgets.pages,
        budgets.shares,
        columns,
        listed,
        counts,
        page_tables.stride(0),
        visible,
        PAGE=page_size,
        HEADS=group,
        GROUP=power_of_two(group),
        PAGES=pages,
        num_warps=8,
        **overlap(device),
    )
    return columns, listed, counts


def _splits(num_tokens: int, num_kv_heads: int, num_pages: int) -> int:
    """Programs that share one token's pages: of the step's shape alone, so that graphs hold."""
    wanted = max(1, TARGET_PROGRAMS // (num_tokens * num_kv_heads))
    return min(MAX_SPLITS, -(-num_pages // BLOCK), power_of_two(wanted + 1) // 2)
