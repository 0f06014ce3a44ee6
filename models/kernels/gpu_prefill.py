# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: causal attention over pages for steps that hold pieces of prompts.

A program takes one block of one request's queries, with all query heads that share a K/V head, over
the keys that any of them sees (online softmax: https://arxiv.org/abs/2205.14135). Blocks of keys
begin at multiples of their size, whatever the step: a token's result is the same bits in any
chunking and company.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gpu_join import LOG2_E
from .sizes import power_of_two


@dataclass(frozen=True, slots=True)
class Tiles:
    """What one program takes at a time."""

    queries: int  # of all the heads that share a K/V head
    keys: int
    num_warps: int
    num_stages: int


WHOLE = Tiles(32, 16, 4, 2)  # fp32: without tensor cores
HALF = Tiles(128, 64, 8, 3)  # fp16, bf16: two warp groups of 64 rows
WIDE = Tiles(64, 32, 4, 2)  # the same for heads of more than 128


def tiles_for(dtype: torch.dtype, head_dim: int, group: int) -> Tiles:
    """Of the model alone. A tile holds one token at least."""
    half = HALF if head_dim <= 128 else WIDE
    tiles = WHOLE if dtype is torch.float32 else half
    return replace(tiles, queries=max(tiles.queries, power_of_two(group)))


@triton.jit
def _find_request(starts_ptr, tile, num_requests, BLOCK_Q):
    """The last request whose tiles begin at or before this one: request r's begin at
    start // BLOCK_Q + r, which leaves room for the ones before it."""
    low, high = 0, num_requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _attend_blocks(
    q,
    best,
    weight,
    acc,
    k_ptr,
    v_ptr,
    table,
    positions,
    last,
    begin,
    end,
    scale,
    window,
    page_bits,
    page_stride,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take in the keys [begin, end) of whole blocks, none of them after `last`'s block."""
    d = tl.arange(0, DIM)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        if MASKED:
            page = tl.load(table + (at >> page_bits), mask=at <= last, other=0)
        else:
            page = tl.load(table + (at >> page_bits))
        offset = at & ((1 << page_bits) - 1)
        row = page.to(tl.int64) * page_stride + offset * HEAD_DIM
        whole = d[None, :] < HEAD_DIM
        if MASKED:
            whole = whole & (at <= last)[:, None]
        k = tl.load(k_ptr + row[:, None] + d[None, :], mask=whole, other=0.0)
        v = tl.load(v_ptr + row[:, None] + d[None, :], mask=whole, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            distance = positions[:, None] - at[None, :]
            scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1) * scale)
        # a query of this block may see none of the keys yet
        safe = tl.where(new_best == float("-inf"), 0.0, new_best) if MASKED else new_best
        p = tl.exp2(scores * scale - safe[:, None])
        shrink = tl.exp2(best - safe)
        weight = weight * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        best = new_best
    return best, weight, acc


@triton.jit(do_not_specialize=["num_requests", "page_bits", "table_width", "window"])
def prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    starts_ptr,
    tables_ptr,
    out_ptr,
    scale,
    window,
    num_requests,
    page_bits,
    page_stride,
    head_stride,
    table_width,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile: BLOCK_M queries, of GROUP heads each of BLOCK_M // GROUP tokens."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest of a request first
    request = _find_request(starts_ptr, tile, num_requests, BLOCK_Q)
    start, stop = tl.load(starts_ptr + request), tl.load(starts_ptr + request + 1)
    begin_q = start + (tile - start // BLOCK_Q - request) * BLOCK_Q
    if begin_q >= stop:
        return

    m = tl.arange(0, BLOCK_M)
    token = tl.minimum(begin_q + m // GROUP, stop - 1)  # past the end the last one, over again
    head = (token.to(tl.int64) * tl.num_programs(0) + kv_head) * GROUP + m % GROUP
    d = tl.arange(0, DIM)
    place = head[:, None] * HEAD_DIM + d[None, :]
    whole = (m < BLOCK_Q * GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + place, mask=whole, other=0.0)
    positions = tl.load(positions_ptr + token).to(tl.int32)
    first_q = tl.load(positions_ptr + begin_q).to(tl.int32)
    last_q = first_q + tl.minimum(stop - begin_q, BLOCK_Q) - 1

    k_ptr += kv_head.to(tl.int64) * head_stride
    v_ptr += kv_head.to(tl.int64) * head_stride
    table = tables_ptr + request.to(tl.int64) * table_width
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, DIM), tl.float32)
    # [begin, clear) some queries see no more, [clear, edge) all see, [edge, last_q] some not yet
    edge = (first_q + 1) // BLOCK * BLOCK
    begin, clear = 0, 0
    if WINDOWED:
        begin = tl.maximum(first_q - window + 1, 0) // BLOCK * BLOCK
        clear = tl.cdiv(tl.maximum(last_q - window + 1, 0), BLOCK) * BLOCK
        clear = tl.minimum(clear, edge)
        best, weight, acc = _attend_blocks(
            q, best, weight, acc, k_ptr, v_ptr, table, positions, last_q, begin, clear,
            scale, window, page_bits, page_stride, HEAD_DIM, DIM, BLOCK, True,
        )  # fmt: skip
    best, weight, acc = _attend_blocks(
        q, best, weight, acc, k_ptr, v_ptr, table, positions, last_q, clear, edge,
        scale, window, page_bits, page_stride, HEAD_DIM, DIM, BLOCK, False,
    )  # fmt: skip
    best, weight, acc = _attend_blocks(
        q, best, weight, acc, k_ptr, v_ptr, table, positions, last_q, edge, last_q + 1,
        scale, window, page_bits, page_stride, HEAD_DIM, DIM, BLOCK, True,
    )  # fmt: skip
    out = (acc / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, out, mask=whole)


def fits(page_size: int, num_pages: int) -> bool:
    """Whether a position's page is found by a shift: any size will do where there is one page."""
    return num_pages == 1 or page_size & (page_size - 1) == 0


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    query_starts: Tensor,
    page_tables: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """`reference.attend`; query_starts [B + 1] int32, where each request's queries begin."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    assert fits(page_size, page_tables.shape[1]), (page_size, page_tables.shape)
    group = num_heads // num_kv_heads
    tiles = tiles_for(q.dtype, head_dim, group)
    num_requests = page_tables.shape[0]
    num_tiles = num_tokens // (tiles.queries // group) + num_requests  # or a few less
    out = torch.empty_like(q)
    prefill_kernel[(num_kv_heads, num_tiles)](
        q,
        k_cache,
        v_cache,
        positions,
        query_starts,
        page_tables,
        out,
        scale * LOG2_E,
        2**30 if window is None else window,
        num_requests,
        power_of_two(page_size).bit_length() - 1,
        k_cache.stride(0),
        k_cache.stride(1),
        page_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM=max(16, power_of_two(head_dim)),
        WINDOWED=window is not None,
        BLOCK_M=tiles.queries,
        BLOCK=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out.flatten(1)
