# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: attention of single tokens over the pages that were chosen for them."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_attention import BLOCK, LOG2_E, STAGES, num_splits_for
from .gpu_join import take, write
from .gpu_launch import counters, overlap
from .sizes import power_of_two

REGISTERS = 128  # of a thread: four programs then share a multiprocessor


@triton.jit
def chosen_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    requests_ptr,
    tables_ptr,
    columns_ptr,
    pages_ptr,
    counts_ptr,
    partial_ptr,
    sums_ptr,
    counter_ptr,
    out_ptr,
    scale,
    table_width,
    columns_width,
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
    """One token's HEADS queries of one K/V head over one share of its pages, which lie one after
    the other as if there were no others; a count of 0 is all that it sees. The last program of a
    head joins the shares."""
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    row = t.to(tl.int64) * num_kv_heads + kv_head
    g, d = tl.arange(0, GROUP), tl.arange(0, DIM)
    if PDL:
        gdc_launch_dependents()
    # no kernel writes these within a step
    position = tl.load(positions_ptr + t).to(tl.int32)
    table = tables_ptr + tl.load(requests_ptr + t) * table_width
    first = tl.maximum(position + 1 - window, 0) // PAGE
    inside = d < HEAD_DIM
    if PDL:
        gdc_wait()
    heads = row * HEADS + g
    whole_q = (g < HEADS)[:, None] & inside[None, :]
    q = tl.load(q_ptr + heads[:, None] * HEAD_DIM + d[None, :], mask=whole_q, other=0.0)
    count = tl.load(counts_ptr + row)
    is_all = count == 0
    count = tl.where(is_all, position // PAGE + 1 - first, count)

    share = tl.cdiv(tl.cdiv(count * PAGE, BLOCK), SPLITS)
    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    end = tl.minimum((split + 1) * share, tl.cdiv(count * PAGE, BLOCK))
    for block in tl.range(split * share, end, num_stages=STAGES):
        i = block * BLOCK + tl.arange(0, BLOCK)
        listed = (i // PAGE < count) & (is_all == 0)
        column = tl.load(columns_ptr + row * columns_width + i // PAGE, mask=listed, other=0)
        page = tl.load(pages_ptr + row * columns_width + i // PAGE, mask=listed, other=0)
        column = tl.where(is_all, first + i // PAGE, column)
        at = column * PAGE + i % PAGE
        seen = (i // PAGE < count) & (at <= position) & (at > position - window)
        if is_all:
            page = tl.load(table + column, mask=seen, other=0)
        page = page.to(tl.int64)
        place = ((page * num_kv_heads + kv_head) * PAGE + at % PAGE)[:, None] * HEAD_DIM
        place += d[None, :]
        whole = seen[:, None] & inside[None, :]
        k = tl.load(k_ptr + place, mask=whole, other=0.0)
        v = tl.load(v_ptr + place, mask=whole, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        best, weight, acc = take(scores, seen, v, best, weight, acc)

    write(
        out_ptr, partial_ptr, sums_ptr, counter_ptr, row, split, best, weight, acc,
        HEADS, GROUP, JOINED, HEAD_DIM, DIM, SPLITS,
    )  # fmt: skip


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    request_ids: Tensor,
    page_tables: Tensor,
    columns: Tensor,
    pages: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """`reference_pages.attend_chosen`, and all of the context where the count is 0:
    q [T, H, D] -> [T, H * D]; columns, pages and counts as `gpu_pages.choose` gives them."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    group, device = num_heads // num_kv_heads, q.device
    splits = num_splits_for(num_tokens, num_kv_heads)
    dim = max(16, power_of_two(head_dim))
    places = num_tokens * num_heads * splits
    partial = torch.empty(places, dim, dtype=torch.float32, device=device)
    sums = torch.empty(places, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=q.dtype, device=device)
    chosen_kernel[(num_tokens, num_kv_heads, splits)](
        q,
        k_cache,
        v_cache,
        positions,
        request_ids,
        page_tables,
        columns,
        pages,
        counts,
        partial,
        sums,
        counters(device),
        out,
        scale * LOG2_E,
        page_tables.stride(0),
        columns.stride(1),
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
        maxnreg=REGISTERS,
        **overlap(device),
    )
    return out
