# ruff: noqa: RUF005
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false
"""Gluon, for Hopper alone: what products of a few tokens share whose weights stream.

Tiles of weights go through a ring in shared memory and are multiplied from where they lie, none of
them in a register. As many as the ring holds are asked for before a kernel even waits for its
tokens: that is what memory does while the kernel before comes to its end.

A warp group multiplies 64 rows by 8 columns at least, and a program has fewer rows to share out and
fewer tokens. So a tile is several groups of its rows, each with another part of the columns, and
has tokens for each: of all sums those of a group with its own tokens are wanted.
"""

from __future__ import annotations

from functools import cache

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
from triton.language.extra.cuda import gdc_wait

from .gpu_gated import activate as activate_in_triton
from .gpu_launch import shared_memory
from .gpu_norm import rounded as rounded_in_triton
from .sizes import power_of_two_in

MAX_TOKENS = 8
MIN_WIDTH = 512  # columns below which there is little to ask for early; of one token twice as many
WARP_ROWS = 16  # of an instruction
IN_REGISTERS = 32768  # elements of all tokens on their way into shared memory
MAX_WIDTH, TILE_WIDTH = 512, 128  # columns of tokens at a time, and of a tile, at most

activate, rounded = gluon.jit(activate_in_triton.fn), gluon.jit(rounded_in_triton.fn)


@gluon.constexpr_function
def copied(columns: int, warps: int) -> gl.BlockedLayout:
    """A tile [rows, columns], 16 bytes a thread along the columns."""
    threads = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // threads, threads], [warps, 1], [1, 0])


@gluon.constexpr_function
def stored(rows: int, warps: int) -> gl.BlockedLayout:
    """Sums [rows, T], stored along the rows."""
    threads = min(32, rows)
    return gl.BlockedLayout([1, 1], [threads, 32 // threads], [warps // 4, 4], [0, 1])


@gluon.constexpr_function
def paired(pairs: int, warps: int) -> gl.BlockedLayout:
    """Sums [pairs, T, 2], both of a pair in one thread."""
    threads = min(32, pairs)
    return gl.BlockedLayout([1, 1, 2], [threads, 32 // threads, 1], [warps // 4, 4, 1], [2, 0, 1])


@gluon.constexpr_function
def summed(warps: int, columns: int) -> gl.NVMMADistributedLayout:
    """What warp groups add up."""
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, columns, 16])


@gluon.constexpr_function
def lying(kind: gl.dtype) -> gl.NVMMASharedLayout:
    """How tiles of rows of 64 columns and more lie in shared memory for such instructions."""
    return gl.NVMMASharedLayout(128, kind.primitive_bitwidth, 2)


@gluon.jit
def ask(
    ring,
    unit,
    weight_ptr,
    rows,
    STRIDE: gl.constexpr,
    GROUPS: gl.constexpr,
    STEPS: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Copy a tile [M, BLOCK_K] into its place in the ring: step `unit % STEPS` of rows [M] of the
    weight, of each group its part of the columns; none where a row is negative."""
    M: gl.constexpr = ring.shape[1]
    BLOCK_K: gl.constexpr = ring.shape[2]
    layout: gl.constexpr = copied(BLOCK_K, WARPS)
    group = gl.arange(0, M, gl.SliceLayout(1, layout)) // (M // GROUPS)
    k = unit % STEPS * BLOCK_K + gl.arange(0, BLOCK_K, gl.SliceLayout(0, layout))
    begin = rows.to(gl.int64) * STRIDE + group * (STEPS * BLOCK_K)
    source = weight_ptr + begin[:, None] + k[None, :]
    place = ring.index(unit % ring.shape[0])
    async_copy.async_copy_global_to_shared(place, source, mask=(rows >= 0)[:, None])


@gluon.jit
def put_tokens(
    xs,
    x_ptr,
    norm_ptr,
    eps,
    num_tokens,
    TOKENS: gl.constexpr,
    NORM: gl.constexpr,
    WAIT: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Tokens [num_tokens, width], normed, into xs [chunks, groups * TOKENS, columns]: row
    g * TOKENS + t has part g of token t's columns."""
    CHUNKS: gl.constexpr = xs.shape[0]
    N: gl.constexpr = xs.shape[1]
    WIDTH: gl.constexpr = xs.shape[2]
    PART: gl.constexpr = CHUNKS * WIDTH
    GROUPS: gl.constexpr = N // TOKENS
    layout: gl.constexpr = copied(WIDTH, WARPS)
    kind: gl.constexpr = x_ptr.dtype.element_ty
    n = gl.arange(0, N, gl.SliceLayout(1, layout))
    k = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    column = (n // TOKENS * PART)[:, None] + k[None, :]
    token = (n % TOKENS)[:, None]
    norms, tokens = (), ()
    if NORM:
        for chunk in gl.static_range(CHUNKS):
            norms = norms + (gl.load(norm_ptr + column + chunk * WIDTH),)
    if WAIT:
        gdc_wait()
    for chunk in gl.static_range(CHUNKS):
        at = token * (GROUPS * PART) + column + chunk * WIDTH
        tokens = tokens + (gl.load(x_ptr + at, mask=token < num_tokens, other=0.0),)
    if NORM:
        squares = gl.zeros([N, WIDTH], gl.float32, layout)
        for chunk in gl.static_range(CHUNKS):
            x = tokens[chunk].to(gl.float32)
            squares += x * x
        total = gl.sum(gl.reshape(gl.sum(squares, 1), [GROUPS, TOKENS]), 0)
        factor = gl.rsqrt(total / (GROUPS * PART) + eps)
        factor = factor[None, :] + gl.zeros([GROUPS, TOKENS], gl.float32, gl.AutoLayout())
        factor = gl.convert_layout(gl.reshape(factor, [N]), gl.SliceLayout(1, layout))[:, None]
        for chunk in gl.static_range(CHUNKS):
            norm = norms[chunk].to(gl.float32)
            xs.index(chunk).store(rounded(tokens[chunk].to(gl.float32), factor, norm, kind))
    else:
        for chunk in gl.static_range(CHUNKS):
            xs.index(chunk).store(tokens[chunk])
    fence_async_shared()


@gluon.jit
def tile_sums(
    ring,
    xs,
    weight_ptr,
    tile,
    tiles,
    now,
    coming,
    STRIDE: gl.constexpr,
    TOKENS: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Sums [rows, TOKENS] of a tile's rows `now`; asks for what lies so many steps ahead as the
    ring has places, some of it of the next tile's rows, `coming`.

    A ring has at most one place more than a tile has steps.
    """
    M: gl.constexpr = ring.shape[1]
    N: gl.constexpr = xs.shape[1]
    BLOCK_K: gl.constexpr = ring.shape[2]
    STAGES: gl.constexpr = ring.shape[0]
    GROUPS: gl.constexpr = N // TOKENS
    PER_CHUNK: gl.constexpr = xs.shape[2] // BLOCK_K
    STEPS: gl.constexpr = xs.shape[0] * PER_CHUNK
    layout: gl.constexpr = summed(WARPS, N)
    acc = gl.zeros([M, N], gl.float32, layout)
    for chunk in range(xs.shape[0]):
        for part in gl.static_range(PER_CHUNK):
            unit = tile * STEPS + chunk * PER_CHUNK + part
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            x = xs.index(chunk).slice(part * BLOCK_K, BLOCK_K, 1).permute((1, 0))
            acc = warpgroup_mma(ring.index(unit % STAGES), x, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])
            if unit > 0:  # what was multiplied before this has left its place
                ahead = unit - 1 + STAGES
                if ahead < tiles * STEPS:
                    rows = gl.where(ahead // STEPS == tile, now, coming)
                    ask(ring, ahead, weight_ptr, rows, STRIDE, GROUPS, STEPS, WARPS)
                async_copy.commit_group()
    acc = warpgroup_mma_wait(0, deps=[acc])
    group = gl.arange(0, M, gl.SliceLayout(1, layout)) // (M // GROUPS)
    its = gl.arange(0, N, gl.SliceLayout(0, layout)) // TOKENS
    acc = gl.where(group[:, None] == its[None, :], acc, 0.0)
    return gl.sum(gl.sum(gl.reshape(acc, [GROUPS, M // GROUPS, GROUPS, TOKENS]), 2), 0)


@gluon.jit
def pair_values(y, threshold, ACTIVATION: gl.constexpr, WARPS: gl.constexpr):
    """Sums [rows, T], a gate's row before an up's -> values [rows / 2, T], to be stored."""
    PAIRS: gl.constexpr = y.shape[0] // 2
    pairs = gl.permute(gl.reshape(y, [PAIRS, 2, y.shape[1]]), (0, 2, 1))
    gate, up = gl.split(gl.convert_layout(pairs, paired(PAIRS, WARPS)))
    return gl.convert_layout(activate(gate, up, threshold, ACTIVATION), stored(PAIRS, WARPS))


@cache
def runs_on(device: torch.device) -> bool:
    """Whether the device has these instructions."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def fits(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether so few tokens are multiplied with such rows, in so many parts of their columns."""
    num_tokens, width = x.shape
    least = MIN_WIDTH if num_tokens > 1 else 2 * MIN_WIDTH
    return (
        runs_on(x.device)
        and x.dtype is weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and num_tokens <= MAX_TOKENS
        and least <= width <= IN_REGISTERS // padded(num_tokens)
        and width % (64 * groups) == 0
        and is_aligned(weight)
    )


def is_aligned(weight: Tensor) -> bool:
    """Whether its rows can be copied 16 bytes at a time."""
    return weight.stride(0) % 8 == 0 and weight.data_ptr() % 16 == 0


def padded(num_tokens: int) -> int:
    """Tokens that a program has room for."""
    return MAX_TOKENS // 2 if num_tokens <= MAX_TOKENS // 2 else MAX_TOKENS


def constants(
    num_tokens: int, width: int, groups: int, warps: int, device: torch.device
) -> dict[str, int]:
    """How a kernel is compiled whose tiles are so many groups: as many are under way as shared
    memory holds beside the tokens, and what sums need. There are two chunks at least: a product of
    one tile and one chunk, where no loop is left, is not compiled by Triton 3.6."""
    part, tokens = width // groups, padded(num_tokens)
    at_a_time = min(MAX_WIDTH, power_of_two_in(part), part // 2)
    columns = min(TILE_WIDTH, at_a_time)
    room = shared_memory(device) - tokens * (2 * width + 512)
    return {
        "TOKENS": tokens,
        "GROUPS": groups,
        "CHUNKS": part // at_a_time,
        "WIDTH": at_a_time,
        "BLOCK_K": columns,
        "STAGES": min(room // (2 * WARP_ROWS * warps * columns), part // columns + 1),
        "WARPS": warps,
        "num_warps": warps,
    }
