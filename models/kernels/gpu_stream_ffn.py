# ruff: noqa: RUF005
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""Gluon, for Hopper alone: the sparse FFN of a few tokens: the rows of the neurons that any of them
keeps, listed first, stream as a product's weights do.

Deterministic: partial sums are added in one order. Nothing here asks the host which neurons there
are.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language import debug_barrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..config import Activation
from . import gpu_stream
from .gpu_launch import counters, multiprocessors, overlap
from .gpu_list import listed_and_normed
from .gpu_stream import (
    MAX_TOKENS,
    WARP_ROWS,
    ask,
    copied,
    lying,
    pair_values,
    put_tokens,
    stored,
    summed,
    tile_sums,
)
from .sizes import ceil_div

WARPS = 8
GROUPS = {4: 4, 8: 1}  # of a tile, for so many tokens (measured)
LISTED, COLUMNS, SPLITS, STAGES = 128, 128, 4, 4  # of output rows: neurons and columns of a tile


@gluon.jit
def _rows(
    tile,
    list_ptr,
    begin,
    share,
    each,
    end,
    M: gl.constexpr,
    NEURONS: gl.constexpr,
    layout: gl.constexpr,
):
    """Those of a tile's neurons, a gate's before an up's; negative past the last."""
    i = gl.arange(0, M, gl.SliceLayout(1, layout))
    neuron = i // 2 % NEURONS
    place = tile * each + neuron
    there = (neuron < each) & (place < share) & (begin + place < end)
    n = gl.load(list_ptr + begin + place, mask=there, other=0)
    return gl.where(there, 2 * n + i % 2, -1)


@gluon.jit(do_not_specialize=["num_tokens"])
def values_kernel(
    x_ptr,
    gate_up_ptr,
    mask_ptr,
    list_ptr,
    count_ptr,
    values_ptr,
    threshold,
    num_tokens,
    num_neurons,
    places,
    TOKENS: gl.constexpr,
    NEURONS: gl.constexpr,
    GROUPS: gl.constexpr,
    CHUNKS: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    BEYOND: gl.constexpr,
    ACTIVATION: gl.constexpr,
    WARPS: gl.constexpr,
    PDL: gl.constexpr,
):
    """Values [TOKENS, places] of the listed neurons, zero where a token's mask says so, and of
    BEYOND places more. x [T, GROUPS * CHUNKS * WIDTH] is normed.

    The kernel after this is not let in before the list is there: it need not wait for it."""
    kind: gl.constexpr = x_ptr.dtype.element_ty
    PART: gl.constexpr = CHUNKS * WIDTH
    HIDDEN: gl.constexpr = GROUPS * PART
    STEPS: gl.constexpr = PART // BLOCK_K
    M: gl.constexpr = 2 * NEURONS * GROUPS
    layout: gl.constexpr = copied(BLOCK_K, WARPS)
    to: gl.constexpr = stored(NEURONS, WARPS)
    ring = gl.allocate_shared_memory(kind, [STAGES, M, BLOCK_K], lying(kind))
    xs = gl.allocate_shared_memory(kind, [CHUNKS, GROUPS * TOKENS, WIDTH], lying(kind))
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    end = gl.load(count_ptr)
    share = gl.cdiv(end, gl.num_programs(0))
    tiles = gl.cdiv(share, NEURONS)
    each = gl.cdiv(share, gl.maximum(tiles, 1))
    begin = gl.program_id(0) * share
    now = _rows(0, list_ptr, begin, share, each, end, M, NEURONS, layout)
    coming = _rows(1, list_ptr, begin, share, each, end, M, NEURONS, layout)
    for unit in gl.static_range(STAGES):
        which = now if unit < STEPS else coming
        ask(ring, unit, gate_up_ptr, which, HIDDEN, GROUPS, STEPS, WARPS)
        async_copy.commit_group()
    put_tokens(xs, x_ptr, None, 0.0, num_tokens, TOKENS, False, False, WARPS)
    t = gl.arange(0, TOKENS, gl.SliceLayout(0, to))
    i = gl.arange(0, NEURONS, gl.SliceLayout(1, to))
    for tile in range(tiles):
        place = begin + tile * each + i
        mine = (i < each) & (tile * each + i < share) & (place < end)
        n = gl.load(list_ptr + place, mask=mine, other=0)
        there = mine[:, None] & (t < num_tokens)[None, :]
        of = mask_ptr + t.to(gl.int64)[None, :] * num_neurons + n[:, None]
        kept = gl.load(of, mask=there, other=0) != 0
        y = tile_sums(ring, xs, gate_up_ptr, tile, tiles, now, coming, HIDDEN, TOKENS, WARPS)
        now = coming
        coming = _rows(tile + 2, list_ptr, begin, share, each, end, M, NEURONS, layout)
        value = pair_values(y, threshold, ACTIVATION, WARPS)
        value = gl.where(kept, value, 0.0).to(kind)
        gl.store(values_ptr + t[None, :] * places + place[:, None], value, mask=mine[:, None])
    if gl.program_id(0) == 0:
        wide: gl.constexpr = copied(BEYOND, WARPS)
        place = end + gl.arange(0, BEYOND, gl.SliceLayout(0, wide))
        row = gl.arange(0, TOKENS, gl.SliceLayout(1, wide))
        zero = gl.zeros([TOKENS, BEYOND], kind, wide)
        gl.store(values_ptr + row[:, None] * places + place[None, :], zero)


@gluon.jit
def _neurons(
    list_ptr, step, end, BLOCK_N: gl.constexpr, SPLITS: gl.constexpr, layout: gl.constexpr
):
    """Those of a step, negative past the last. They are read before the wait, and so not from the
    first-level cache, which may still hold another layer's."""
    first = (gl.program_id(1) + step * SPLITS) * BLOCK_N
    place = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
    return gl.load(list_ptr + place, mask=place < end, other=-1, cache_modifier=".cg")


@gluon.jit
def _ask_down(ring, step, down_ptr, n, HIDDEN: gl.constexpr, WARPS: gl.constexpr):
    """Copy a block of columns of the rows of neurons n [BLOCK_N] into its place in the ring."""
    BLOCK_C: gl.constexpr = ring.shape[2]
    c = gl.arange(0, BLOCK_C, gl.SliceLayout(0, copied(BLOCK_C, WARPS)))
    column = gl.program_id(0) * BLOCK_C + c
    source = down_ptr + (n.to(gl.int64) * HIDDEN)[:, None] + column[None, :]
    place = ring.index(step % ring.shape[0])
    async_copy.async_copy_global_to_shared(place, source, mask=(n >= 0)[:, None])


@gluon.jit(do_not_specialize=["num_tokens"])
def down_kernel(
    values_ptr,
    down_ptr,
    list_ptr,
    count_ptr,
    partial_ptr,
    counter_ptr,
    add_ptr,
    out_ptr,
    scale,
    num_tokens,
    places,
    HIDDEN: gl.constexpr,
    SPLITS: gl.constexpr,
    TOKENS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STAGES: gl.constexpr,
    ADD: gl.constexpr,
    WARPS: gl.constexpr,
    PDL: gl.constexpr,
):
    """A share of the neurons' output rows, weighted and summed, for a block of columns; the last
    program of a block adds the shares. Rows are asked for before their weights are there."""
    kind: gl.constexpr = values_ptr.dtype.element_ty
    layout: gl.constexpr = copied(BLOCK_C, WARPS)
    beside: gl.constexpr = copied(BLOCK_N, WARPS)
    to: gl.constexpr = stored(BLOCK_C, WARPS)
    ring = gl.allocate_shared_memory(kind, [STAGES, BLOCK_N, BLOCK_C], lying(kind))
    weights = gl.allocate_shared_memory(kind, [STAGES, TOKENS, BLOCK_N], lying(kind))
    block, split = gl.program_id(0), gl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    end = gl.load(count_ptr, cache_modifier=".cg")
    steps = gl.cdiv(gl.cdiv(end, BLOCK_N) - split, SPLITS)
    for step in gl.static_range(STAGES):
        n = _neurons(list_ptr, step, end, BLOCK_N, SPLITS, layout)
        _ask_down(ring, step, down_ptr, n, HIDDEN, WARPS)
        async_copy.commit_group()
    now = _neurons(list_ptr, STAGES, end, BLOCK_N, SPLITS, layout)
    coming = _neurons(list_ptr, STAGES + 1, end, BLOCK_N, SPLITS, layout)
    if PDL:
        gdc_wait()
    place = gl.arange(0, BLOCK_N, gl.SliceLayout(0, beside)) + split * BLOCK_N
    token = gl.arange(0, TOKENS, gl.SliceLayout(1, beside))
    values = values_ptr + token[:, None] * places + place[None, :]
    first = ()
    for step in gl.static_range(STAGES):
        there = (place + step * SPLITS * BLOCK_N < end)[None, :]
        first = first + (gl.load(values + step * SPLITS * BLOCK_N, mask=there, other=0.0),)
    for step in gl.static_range(STAGES):
        weights.index(step).store(first[step])
    fence_async_shared()
    c = gl.arange(0, BLOCK_C, gl.SliceLayout(1, to))
    t = gl.arange(0, TOKENS, gl.SliceLayout(0, to))
    there = (t < num_tokens)[None, :]
    acc = gl.zeros([BLOCK_C, TOKENS], gl.float32, summed(WARPS, TOKENS))
    for step in range(steps):
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        rows = ring.index(step % STAGES).permute((1, 0))
        beside_rows = weights.index(step % STAGES).permute((1, 0))
        acc = warpgroup_mma(rows, beside_rows, acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        if step > 0:
            ahead = step - 1 + STAGES
            if ahead < steps:
                _ask_down(ring, ahead, down_ptr, now, HIDDEN, WARPS)
                source = values + ahead * SPLITS * BLOCK_N
                async_copy.async_copy_global_to_shared(weights.index(ahead % STAGES), source)
            now = coming
            coming = _neurons(list_ptr, ahead + 2, end, BLOCK_N, SPLITS, layout)
            async_copy.commit_group()
    acc = warpgroup_mma_wait(0, deps=[acc])
    async_copy.wait_group(0)
    y = gl.convert_layout(acc, to)
    shares = partial_ptr + (block * SPLITS * TOKENS + t[None, :]) * BLOCK_C + c[:, None]
    gl.store(shares + split * TOKENS * BLOCK_C, y, mask=there)
    debug_barrier()
    counter = counter_ptr + block
    if gl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        gl.store(counter, 0)
        y = gl.zeros([BLOCK_C, TOKENS], gl.float32, to)
        for part in gl.static_range(SPLITS):
            of = shares + part * TOKENS * BLOCK_C
            y += gl.load(of, mask=there, other=0.0, cache_modifier=".cg")
        at = t[None, :] * HIDDEN + (block * BLOCK_C + c)[:, None]
        if ADD:
            y = gl.load(add_ptr + at, mask=there, other=0.0).to(gl.float32) + scale * y
        gl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=there)


def fits(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Whether these kernels compute the FFN of such tokens, on such a device."""
    groups = GROUPS[gpu_stream.padded(x.shape[0])]
    is_whole = x.shape[1] % COLUMNS == 0
    return is_whole and gpu_stream.is_aligned(down) and gpu_stream.fits(x, gate_up, groups)


def sparse(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`gpu_ffn_few.sparse` for tokens that `fits`."""
    (num_tokens, hidden), total, device = x.shape, gate_up.shape[0], x.device
    groups = GROUPS[gpu_stream.padded(num_tokens)]
    neurons, count, x = listed_and_normed(mask, x, norm, eps)
    places = (ceil_div(total, LISTED) + 1) * LISTED
    values = torch.empty(MAX_TOKENS, places, dtype=x.dtype, device=device)
    values_kernel[(multiprocessors(device),)](
        x,
        gate_up,
        mask.view(torch.uint8),
        neurons,
        count,
        values,
        threshold,
        num_tokens,
        total,
        places,
        NEURONS=WARP_ROWS * WARPS // (2 * groups),
        BEYOND=LISTED,
        ACTIVATION=activation.value,
        **gpu_stream.constants(num_tokens, hidden, groups, WARPS, device),
        **overlap(device),
    )
    blocks = hidden // COLUMNS
    sizes = (blocks, SPLITS, MAX_TOKENS, COLUMNS)
    partial = torch.empty(*sizes, dtype=torch.float32, device=device)
    out = torch.empty_like(x)
    down_kernel[(blocks, SPLITS)](
        values,
        down,
        neurons,
        count,
        partial,
        counters(device),
        add,
        out,
        scale,
        num_tokens,
        places,
        HIDDEN=hidden,
        SPLITS=SPLITS,
        TOKENS=MAX_TOKENS,
        BLOCK_N=LISTED,
        BLOCK_C=COLUMNS,
        STAGES=STAGES,
        ADD=add is not None,
        WARPS=WARPS,
        num_warps=WARPS,
        **overlap(device),
    )
    return out
