# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Triton: the pages of the highest estimates within a budget: `reference_pages.keep`.

Estimates are not negative, so the order of their bits is theirs: a bound that just enough of them
reach is searched for in ever finer parts of what is left, and nothing is sorted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import PageBudgets
from .gpu_launch import overlap
from .sizes import power_of_two

MANY = 8192  # pages that eight warps hold in registers
LOG_PARTS = 5  # of the parts of a range of bits that are counted at once
BEYOND = tl.constexpr(0x3F810000)  # the bits of 1 and a bit, more than any share
FORCED = tl.constexpr(0x7F800000)  # of infinity


@triton.jit
def _reached(bits, room, num_forced, least, LOG_PARTS: tl.constexpr):
    """A bound, and how many are above it: `room` of them or, of equal estimates at the bound, some
    more are wanted. `least` is reached by all, of whom there are more than `room`."""
    PARTS: tl.constexpr = 1 << LOG_PARTS
    part = tl.arange(0, PARTS)
    more, above = num_forced, 0 + BEYOND
    shift = 31 - LOG_PARTS
    while (shift > 0) & ((above - 1 - least) >> (shift - 1) < PARTS):
        shift -= 1
    while above - least > 1:
        within = (bits >= least) & (bits < above)
        counts = tl.histogram(tl.where(within, bits - least, 0) >> shift, PARTS, mask=within)
        reach = more + tl.cumsum(counts, 0, reverse=True)
        # of the parts that enough of them reach the last, and how many those are
        packed = (reach << LOG_PARTS) | (PARTS - 1 - part)
        fewest = tl.min(tl.where(reach >= room, packed, 0x7FFFFFFF), 0)
        more = tl.max(tl.where(reach < room, reach, more), 0)
        found = PARTS - 1 - (fewest & (PARTS - 1))
        above = tl.minimum(above, least + ((found + 1) << shift))
        least += found << shift
        shift = tl.maximum(shift - LOG_PARTS, 0)
        if fewest >> LOG_PARTS == room:
            least, above, more = least - 1, least, room
    return least, more


@triton.jit
def _reached_by_share(bits, mass, forced, inside, room, enough, least):
    """The same, but no more than estimates that add up to `enough`."""
    above = 0 + BEYOND
    while above - least > 1:
        middle = least + (above - least) // 2
        kept = forced | (inside & (bits >= middle))
        suffices = tl.sum(kept.to(tl.int32), 0) >= room
        suffices = suffices | (tl.sum(tl.where(kept, mass, 0.0), 0) >= enough)
        least = tl.where(suffices, middle, least)
        above = tl.where(suffices, above, middle)
    return least, tl.sum((bits > least).to(tl.int32), 0)


@triton.jit
def keep_kernel(
    scores_ptr,
    sums_ptr,
    positions_ptr,
    requests_ptr,
    tables_ptr,
    budgets_ptr,
    shares_ptr,
    pages_ptr,
    counts_ptr,
    table_width,
    window,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    LOG_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's choice of pages for one K/V head."""
    t, head = tl.program_id(0), tl.program_id(1)
    row = t.to(tl.int64) * tl.num_programs(1) + head
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position = tl.load(positions_ptr + t).to(tl.int32)
    budget, enough = tl.load(budgets_ptr + t), tl.load(shares_ptr + t)
    first, last = tl.maximum(position + 1 - window, 0) // PAGE, position // PAGE
    num_pages = last - first
    p = tl.arange(0, PAGES)
    inside = p < num_pages
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    page = tl.load(table + first + p, mask=inside & (budget > 0), other=0)
    own = tl.load(table + last)
    if PDL:
        gdc_wait()
    if budget == 0:
        tl.store(counts_ptr + row, 0)
    else:
        g, s = tl.arange(0, GROUP), tl.arange(0, SPLITS)
        place = scores_ptr + (row * HEADS + g)[:, None] * PAGES + p[None, :]
        whole = (g < HEADS)[:, None] & inside[None, :]
        scores = tl.load(place, mask=whole, other=float("-inf"))
        place = sums_ptr + 2 * ((row * HEADS + g)[:, None] * SPLITS + s[None, :])
        peaks = tl.load(place, mask=(g < HEADS)[:, None], other=0.0)
        sums = tl.load(place + 1, mask=(g < HEADS)[:, None], other=1.0)
        peak = tl.max(peaks, 1)
        total = tl.maximum(tl.sum(sums * tl.exp2(peaks - peak[:, None]), 1), 1e-30)
        mass = tl.sum(tl.exp2(scores - peak[:, None]) / (total * HEADS)[:, None], 0)
        forced = inside & ((p == 0) | (p == num_pages - 1))
        bits = mass.to(tl.int32, bitcast=True)
        room = tl.minimum(budget - 1, num_pages)
        least = tl.min(tl.where(inside, bits, FORCED), 0)
        bits = tl.where(forced, FORCED, tl.where(inside, bits, -1))
        num_equal = 0
        if enough < 1:
            least, more = _reached_by_share(bits, mass, forced, inside, room, enough, least)
            num_equal = tl.minimum(room - more, tl.sum((bits == least).to(tl.int32), 0))
        elif room < num_pages:
            least, more = _reached(bits, room, tl.minimum(num_pages, 2), least, LOG_PARTS)
            num_equal = room - more
        else:
            least, more = -1, num_pages
        # of equals the earlier; larger ones and equals are counted side by side
        kind: tl.constexpr = tl.int32 if PAGES <= 1 << 15 else tl.int64
        side: tl.constexpr = 16 if PAGES <= 1 << 15 else 32
        is_more, is_equal = bits > least, bits == least
        counted = (is_more.to(kind) << side) | is_equal.to(kind)
        before = tl.cumsum(counted, 0) - counted
        equal_before = before & ((1 << side) - 1)
        kept = is_more | (is_equal & (equal_before < num_equal))
        place = (before >> side) + tl.minimum(equal_before, num_equal)
        tl.store(pages_ptr + row * PAGES + place, page, mask=kept)
        num_kept = more + num_equal
        tl.store(pages_ptr + row * PAGES + num_kept, own)
        tl.store(counts_ptr + row, num_kept + 1)


def keep(
    scores: Tensor,
    sums: Tensor,
    positions: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    budgets: PageBudgets,
    page_size: int,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """scores [T, K, G, a power of two] of the complete pages that a token sees, in powers of two,
    and of each of some parts of them the largest and the sum of what they stand for over that,
    sums [T, K, G, parts, 2] -> what `gpu_pages.choose` gives."""
    (num_tokens, num_kv_heads, group, width), device = scores.shape, scores.device
    assert width < 1 << (31 - LOG_PARTS), width  # counts and parts share 31 bits
    shape = (num_tokens, num_kv_heads)
    pages = torch.empty(*shape, width, dtype=torch.int32, device=device)
    counts = torch.empty(shape, dtype=torch.int32, device=device)
    keep_kernel[shape](
        scores,
        sums,
        positions,
        request_ids,
        page_tables,
        budgets.pages,
        budgets.shares,
        pages,
        counts,
        page_tables.stride(0),
        2**30 if window is None else window,
        PAGE=page_size,
        HEADS=group,
        GROUP=power_of_two(group),
        PAGES=width,
        SPLITS=sums.shape[3],
        LOG_PARTS=LOG_PARTS,
        num_warps=8 if width <= MANY else 32,
        **overlap(device),
    )
    return pages, counts
