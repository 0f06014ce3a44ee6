# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: queries and keys rotated, keys and values stored, and attention over pages, all in one
kernel: for steps in which every token is a request's only one, as when decoding."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_join import LOG2_E, take, write
from .gpu_launch import counters, overlap, run_at_once
from .gpu_rotary import rotated, rotated_whole, store_own
from .gpu_summary import summarize_page
from .sizes import power_of_two

MAX_SPLITS = 32
TARGET_PROGRAMS = 512
FEW_HEADS, AT_ONCE = 32, 256  # so few K/V heads of all tokens: programs that all run at once
BLOCK = 64  # positions at a time
STAGES, IF_ALONE = 3, 2  # blocks whose page numbers are under way; where no program shares a token


@triton.jit
def _block(
    k_ptr,
    v_ptr,
    table,
    block,
    last,
    kv_head,
    num_kv_heads,
    window,
    position,
    PAGE: tl.constexpr,
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
    page = tl.load(table + at // PAGE, mask=at <= last, other=0).to(tl.int64)
    row = ((page * num_kv_heads + kv_head) * PAGE + at % PAGE) * HEAD_DIM
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
    SUMMARIES: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's HEADS queries of one K/V head over one share of its positions; the last program
    of a head joins the shares. Who has the token's own position stores its key and value. Where
    there are SUMMARIES, one program more writes that of the page that the token fills.

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
    num_blocks = position // BLOCK + 1 - first
    share = tl.cdiv(num_blocks, SPLITS)
    num_shares = tl.cdiv(num_blocks, share)
    begin = first + split * share
    end = tl.minimum(begin + share, position // BLOCK + 1)
    shape = (kv_head, num_kv_heads, window, position)

    num_heads = num_kv_heads * HEADS
    qkv = qkv_ptr + t.to(tl.int64) * (num_heads + 2 * num_kv_heads) * HEAD_DIM
    queries = qkv + (kv_head * HEADS + g)[:, None] * HEAD_DIM + h[None, :]
    whole_q = (g < HEADS)[:, None] & (h < half)[None, :]
    source = qkv + (num_heads + kv_head) * HEAD_DIM
    if SUMMARIES:  # noqa: SIM102, known when this is compiled
        if split == SPLITS:
            d = tl.arange(0, DIM)
            if PDL:
                gdc_wait()
            key = rotated_whole(source, d, d < HEAD_DIM, cos_ptr, sin_ptr, position, HEAD_DIM)
            summarize_page(
                key, k_ptr, summary_ptr, slot, kv_head, num_kv_heads, PAGE, HEAD_DIM, DIM
            )
            return

    if split >= num_shares:  # who only waits keeps others from starting early
        return
    own = (source, k_ptr, v_ptr, cos, sin, slot, kv_head, num_kv_heads)
    # `begin < end` is true by now; without it the compiler takes fewer registers, and longer
    has_own = (begin < end) & (end == position // BLOCK + 1)
    if EARLY:
        q1 = tl.zeros((GROUP, HALF), qkv_ptr.dtype.element_ty)
        q2 = q1
    else:
        if PDL:
            gdc_wait()
        q1, q2 = rotated(queries, half, whole_q, cos[None, :], sin[None, :])
        if has_own:
            store_own(*own, PAGE, HEAD_DIM, HALF, DIM)
            tl.debug_barrier()  # other threads of this program read them

    best = tl.full((GROUP,), float("-inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    last = position - 1 if EARLY else position
    for block in tl.range(begin, end, num_stages=STAGES):
        k1, k2, v, seen = _block(
            k_ptr, v_ptr, table, block, last, *shape, PAGE, HEAD_DIM, HALF, DIM, BLOCK
        )
        if EARLY and block == begin:
            if PDL:
                gdc_wait()
            q1, q2 = rotated(queries, half, whole_q, cos[None, :], sin[None, :])
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale
        best, weight, acc = take(scores, seen, v, best, weight, acc)
    if EARLY:  # noqa: SIM102, known when this is compiled
        if has_own:
            k1, k2, v = store_own(*own, PAGE, HEAD_DIM, HALF, DIM)
            score = tl.sum(q1.to(tl.float32) * k1.to(tl.float32)[None, :], 1)
            score = (score + tl.sum(q2.to(tl.float32) * k2.to(tl.float32)[None, :], 1)) * scale
            new_best = tl.maximum(best, score)
            p = tl.exp2(score - new_best)
            shrink = tl.exp2(best - new_best)
            weight = weight * shrink + p
            p = p.to(v.dtype).to(tl.float32)
            acc = acc * shrink[:, None] + p[:, None] * v.to(tl.float32)[None, :]
            best = new_best

    row = t.to(tl.int64) * num_kv_heads + kv_head
    write(
        out_ptr, partial_ptr, sums_ptr, counter_ptr, row, split, num_shares,
        best, weight, acc, HEADS, GROUP, JOINED, HEAD_DIM, DIM, SPLITS,
    )  # fmt: skip


def num_splits_for(num_tokens: int, num_kv_heads: int, programs: int | None = None) -> int:
    """Programs that share one token's positions, of about so many in all or TARGET_PROGRAMS: of the
    token count alone, so that graphs hold."""
    wanted = max(1, (programs or TARGET_PROGRAMS) // (num_tokens * num_kv_heads))
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
    is_few = num_tokens * num_kv_heads <= FEW_HEADS
    splits = num_splits_for(num_tokens, num_kv_heads, AT_ONCE if is_few else None)
    dim = max(16, power_of_two(head_dim))
    is_early = run_at_once(num_tokens * num_kv_heads * splits, device)
    places = num_tokens * num_heads * splits
    partial = torch.empty(places, dim, dtype=torch.float32, device=device)
    sums = torch.empty(places, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=qkv.dtype, device=device)
    decode_kernel[(num_tokens, num_kv_heads, splits + (summary is not None))](
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
        page_tables.stride(0),
        2**30 if window is None else window,
        HEADS=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        GROUP=max(16, power_of_two(num_heads // num_kv_heads)),
        JOINED=power_of_two(num_heads // num_kv_heads),
        HALF=max(16, power_of_two(head_dim // 2)),
        DIM=dim,
        SPLITS=splits,
        BLOCK=BLOCK,
        STAGES=IF_ALONE if splits == 1 and not is_early else STAGES,
        PAGE=page_size,
        SUMMARIES=summary is not None,
        EARLY=is_early,
        num_warps=4,
        **overlap(device),
    )
    return out
