# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""Gluon, for Hopper alone: `x @ weight.T` for a few tokens; every program has as many rows as any
other, and all their columns."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.language.extra.cuda import gdc_launch_dependents

from . import gpu_stream
from .gpu_epilogue import Epilogue
from .gpu_epilogue import finish as finish_in_triton
from .gpu_launch import multiprocessors, overlap
from .gpu_stream import (
    WARP_ROWS,
    ask,
    copied,
    lying,
    pair_values,
    put_tokens,
    stored,
    tile_sums,
)
from .sizes import ceil_div, power_of_two

ROWS = 64  # of a tile, at most

finish = gluon.jit(finish_in_triton.fn)


@gluon.jit
def _rows(tile, begin, end, rows, M: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr):
    """Those of a tile, of each group the same; negative past the last."""
    i = gl.arange(0, M, gl.SliceLayout(1, layout)) % ROWS
    row = begin + tile * rows + i
    return gl.where((i < rows) & (row < end), row, -1)


@gluon.jit(do_not_specialize=["num_tokens"])
def product_kernel(
    x_ptr,
    norm_ptr,
    weight_ptr,
    add_ptr,
    out_ptr,
    threshold,
    eps,
    scale,
    num_tokens,
    num_rows,
    share,
    rows,
    tiles,
    STRIDE: gl.constexpr,
    TOKENS: gl.constexpr,
    ROWS: gl.constexpr,
    GROUPS: gl.constexpr,
    CHUNKS: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr,
    NORM: gl.constexpr,
    ADD: gl.constexpr,
    WARPS: gl.constexpr,
    PDL: gl.constexpr,
):
    """Tokens [T, GROUPS * CHUNKS * WIDTH] x a share of the weight's rows, `rows` of them a tile."""
    kind: gl.constexpr = x_ptr.dtype.element_ty
    STEPS: gl.constexpr = CHUNKS * WIDTH // BLOCK_K
    M: gl.constexpr = ROWS * GROUPS
    layout: gl.constexpr = copied(BLOCK_K, WARPS)
    ring = gl.allocate_shared_memory(kind, [STAGES, M, BLOCK_K], lying(kind))
    xs = gl.allocate_shared_memory(kind, [CHUNKS, GROUPS * TOKENS, WIDTH], lying(kind))
    begin = gl.program_id(0) * share
    end = gl.minimum(begin + share, num_rows)
    if PDL:
        gdc_launch_dependents()
    now = _rows(0, begin, end, rows, M, ROWS, layout)
    coming = _rows(1, begin, end, rows, M, ROWS, layout)
    for unit in gl.static_range(STAGES):
        if unit < STEPS * tiles:
            which = now if unit < STEPS else coming
            ask(ring, unit, weight_ptr, which, STRIDE, GROUPS, STEPS, WARPS)
        async_copy.commit_group()
    put_tokens(xs, x_ptr, norm_ptr, eps, num_tokens, TOKENS, NORM, PDL, WARPS)
    OUT: gl.constexpr = ROWS // 2 if EPILOGUE == 3 else ROWS  # of a tile: pairs are one
    EACH: gl.constexpr = ROWS // OUT
    to: gl.constexpr = stored(OUT, WARPS)
    t = gl.arange(0, TOKENS, gl.SliceLayout(0, to))
    r = gl.arange(0, OUT, gl.SliceLayout(1, to))
    for tile in range(tiles):
        row = (begin + tile * rows) // EACH + r
        place = t[None, :] * (num_rows // EACH) + row[:, None]
        inside = (t < num_tokens)[None, :] & ((r * EACH < rows) & (row * EACH < end))[:, None]
        if ADD:
            added = gl.load(add_ptr + place, mask=inside, other=0.0).to(gl.float32)
        y = tile_sums(ring, xs, weight_ptr, tile, tiles, now, coming, STRIDE, TOKENS, WARPS)
        now = coming
        coming = _rows(tile + 2, begin, end, rows, M, ROWS, layout)
        if EPILOGUE == 3:
            y = pair_values(y, threshold, "silu", WARPS).to(out_ptr.dtype.element_ty)
        else:
            y = gl.convert_layout(y, to)
            if ADD:
                y = y * scale + added
            y = finish(y, threshold, EPILOGUE, out_ptr.dtype.element_ty)
        gl.store(out_ptr + place, y, mask=inside)


@dataclass(frozen=True, slots=True)
class Cut:
    """What each program multiplies: so many rows of the weight in so many tiles. A tile has room
    for `block` rows, and that in groups, for its warps to have 16 rows each."""

    share: int
    rows: int
    tiles: int
    block: int
    groups: int
    warps: int


@cache
def cut_for(num_rows: int, device: torch.device) -> Cut:
    """Even numbers of rows, for pairs."""
    share = _even(ceil_div(num_rows, multiprocessors(device)))
    tiles = ceil_div(share, ROWS)
    rows = _even(ceil_div(share, tiles))
    block = max(WARP_ROWS, power_of_two(rows))
    warps = 8 if block == ROWS else 4
    return Cut(share, rows, tiles, block, WARP_ROWS * warps // block, warps)


def _even(n: int) -> int:
    return n + n % 2


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel multiplies such shapes, on such a device."""
    return gpu_stream.fits(x, weight, cut_for(weight.shape[0], x.device).groups)


def multiply(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    epilogue: Epilogue,
    threshold: float,
    norm: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: float,
) -> Tensor:
    """`gpu_linear.multiply` for shapes that `fits`."""
    (num_tokens, width), num_rows, device = x.shape, weight.shape[0], x.device
    cut = cut_for(num_rows, device)
    product_kernel[(ceil_div(num_rows, cut.share),)](
        x,
        norm,
        weight,
        add,
        out,
        threshold,
        eps,
        scale,
        num_tokens,
        num_rows,
        cut.share,
        cut.rows,
        cut.tiles,
        STRIDE=weight.stride(0),
        ROWS=cut.block,
        EPILOGUE=int(epilogue),
        NORM=norm is not None,
        ADD=add is not None,
        **gpu_stream.constants(num_tokens, width, cut.groups, cut.warps, device),
        **overlap(device),
    )
    return out
