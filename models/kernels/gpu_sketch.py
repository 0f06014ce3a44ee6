# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: scores of packed rows, unpacked in registers.

Bits of a word with all others masked are a float already, next to zero: n times a power of two that
depends on their place. Instructions multiply such floats as fast as any, so that unpacking is the
mask, and for the upper bits a shift; what it is multiplied by is large instead.

One token: a program holds its rows' words before it waits for `x`, and multiplies by the scales
once it has added up what shares one. More tokens: tiles on tensor cores, each number scaled first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import reference
from .gpu_launch import overlap
from .sizes import ceil_div, power_of_two, power_of_two_in

WORDS = 8192  # that a program of one token holds
ROWS, TOKENS = 64, 64  # of a tile at most
NEURONS = 2048  # that are unpacked at once where no kernel fits
LEFT = tl.constexpr(2.0**-49)  # of n * 2 ** -149, the float of bits n, times 2 ** 100


@triton.jit
def _times(y, word, PLACE: tl.constexpr, BITS: tl.constexpr):
    """What a word holds at a place, times LEFT * y: `reference.unpack` has the layout."""
    TOGETHER: tl.constexpr = 23 // BITS  # numbers that a mantissa holds
    AT: tl.constexpr = PLACE % TOGETHER * BITS
    bits = (word >> (PLACE // TOGETHER * TOGETHER * BITS)) & (((1 << BITS) - 1) << AT)
    return bits.to(tl.float32, bitcast=True) * (y * 2.0 ** (100 - AT))


@triton.jit
def _last(ends):
    """A word of the two numbers of three bits that the ends of three words, two bits each, are."""
    return (ends & 7) | ((ends >> 1) & 24) | ((ends << 2) & 32)


@triton.jit
def one_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    limits_ptr,
    mask_ptr,
    threshold,
    num_neurons,
    R: tl.constexpr,
    BITS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LIMITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token and BLOCK_N neurons of R rows; a row is BITS times WIDTH words."""
    first = tl.program_id(0) * BLOCK_N
    rows = tl.minimum(first * R + tl.arange(0, BLOCK_N * R), num_neurons * R - 1).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    inside = (w < WIDTH)[None, :]
    if PDL:
        gdc_launch_dependents()
    words = ()
    for p in tl.static_range(BITS):
        at = (rows[:, None] * BITS + p) * WIDTH + w[None, :]
        words = words + (tl.load(codes_ptr + at, mask=inside, other=0),)  # noqa: RUF005
    group = w // (WIDTH // GROUPS)
    scale = tl.load(scales_ptr + rows[:, None] * GROUPS + group[None, :], mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    if BITS == 3:
        ends = tl.zeros((BLOCK_N * R, BLOCK_W), tl.int32)
        for p in tl.static_range(BITS):
            ends |= ((words[p] >> 30) & 3) << (2 * p)
        words = words + (_last(ends),)  # noqa: RUF005
    acc = tl.zeros((BLOCK_N * R, BLOCK_W), tl.float32)
    total = tl.zeros((BLOCK_W,), tl.float32)
    PER_WORD: tl.constexpr = 32 // BITS
    for slot in tl.static_range(32):
        x = tl.load(x_ptr + slot * WIDTH + w, mask=w < WIDTH, other=0.0).to(tl.float32)
        acc += _times(x[None, :], words[slot // PER_WORD], slot % PER_WORD, BITS)
        total += x
    MIDDLE: tl.constexpr = ((1 << BITS) - 1) / 2
    scores = tl.sum((acc / LEFT - MIDDLE * total[None, :]) * scale.to(tl.float32), 1)
    least = tl.min(tl.reshape(scores, (BLOCK_N, R)), 1)
    if LIMITS:
        threshold = tl.load(limits_ptr)
    neurons = first + tl.arange(0, BLOCK_N)
    tl.store(mask_ptr + neurons, (least > threshold).to(tl.uint8), mask=neurons < num_neurons)


@triton.jit(do_not_specialize=["num_tokens"])
def few_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    limits_ptr,
    mask_ptr,
    threshold,
    num_tokens,
    num_neurons,
    R: tl.constexpr,
    BITS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LIMITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile of tokens over a tile of neurons."""
    first = tl.program_id(0) * BLOCK_N
    rows = tl.minimum(first * R + tl.arange(0, BLOCK_N * R), num_neurons * R - 1).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    w = tl.arange(0, BLOCK_W)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    PER_WORD: tl.constexpr = 32 // BITS
    MIDDLE: tl.constexpr = ((1 << BITS) - 1) / 2 * LEFT
    kind = x_ptr.dtype.element_ty
    is_there = t[None, :] < num_tokens
    token = x_ptr + t[None, :].to(tl.int64) * (32 * WIDTH)
    acc = tl.zeros((BLOCK_N * R, BLOCK_T), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_W, num_stages=1):
        group = (start + w) // (WIDTH // GROUPS)
        scale = tl.load(scales_ptr + rows[:, None] * GROUPS + group[None, :]).to(tl.float32) / LEFT
        columns = token + (start + w)[:, None]
        ends = tl.zeros((BLOCK_N * R, BLOCK_W), tl.int32)
        for p in tl.range(BITS, num_stages=1):
            word = tl.load(codes_ptr + (rows[:, None] * BITS + p) * WIDTH + (start + w)[None, :])
            xs = ()
            for place in tl.static_range(PER_WORD):
                at = (p * PER_WORD + place) * WIDTH
                xs = xs + (tl.load(columns + at, mask=is_there, other=0.0),)  # noqa: RUF005
            for place in tl.static_range(PER_WORD):
                row = ((_times(1.0, word, place, BITS) - MIDDLE) * scale).to(kind)
                acc = tl.dot(row, xs[place], acc, input_precision="ieee")
            if BITS == 3:
                ends |= ((word >> 30) & 3) << (2 * p)
        for place in tl.static_range(32 - BITS * PER_WORD):
            x = tl.load(columns + (BITS * PER_WORD + place) * WIDTH, mask=is_there, other=0.0)
            row = ((_times(1.0, _last(ends), place, BITS) - MIDDLE) * scale).to(kind)
            acc = tl.dot(row, x, acc, input_precision="ieee")
    least = tl.min(tl.reshape(acc, (BLOCK_N, R, BLOCK_T)), 1)
    if LIMITS:
        limit = tl.load(limits_ptr + t, mask=t < num_tokens, other=0.0)
    else:
        limit = tl.full((BLOCK_T,), 1.0, tl.float32) * threshold
    neurons = first + tl.arange(0, BLOCK_N)
    at = t[None, :].to(tl.int64) * num_neurons + neurons[:, None]
    kept = (least > limit[None, :]).to(tl.uint8)
    tl.store(mask_ptr + at, kept, mask=(t[None, :] < num_tokens) & (neurons[:, None] < num_neurons))


def sketch(x: Tensor, codes: Tensor, scales: Tensor, threshold: float | Tensor) -> Tensor:
    """`reference.sketch`."""
    num_tokens, (num_neurons, num_rows, bits, width) = x.shape[0], codes.shape
    block = min(64, power_of_two_in(width))
    if num_tokens > 1 and block < 16:
        return _unpacked(x, codes, scales, threshold)
    assert x.is_contiguous(), x.stride()
    assert codes.is_contiguous(), codes.stride()
    assert scales.is_contiguous(), scales.stride()
    mask = torch.empty(num_tokens, num_neurons, dtype=torch.uint8, device=x.device)
    given = isinstance(threshold, Tensor)
    limits, limit = (threshold, 0.0) if given else (None, threshold)
    shared = {
        "R": num_rows,
        "BITS": bits,
        "WIDTH": width,
        "GROUPS": scales.shape[2],
        "LIMITS": given,
        "num_warps": 8 if num_tokens == 1 else 4,
        **overlap(x.device),
    }
    if num_tokens == 1:
        columns = power_of_two(width)
        neurons = max(1, power_of_two(WORDS // (num_rows * bits * columns) + 1) // 2)
        grid = (ceil_div(num_neurons, neurons),)
        arguments = (x, codes, scales, limits, mask, limit, num_neurons)
        one_kernel[grid](*arguments, BLOCK_N=neurons, BLOCK_W=columns, **shared)
    else:
        tokens = min(TOKENS, power_of_two(max(16, num_tokens)))
        neurons = ROWS // num_rows
        grid = (ceil_div(num_neurons, neurons), ceil_div(num_tokens, tokens))
        arguments = (x, codes, scales, limits, mask, limit, num_tokens, num_neurons)
        blocks = {"BLOCK_T": tokens, "BLOCK_N": neurons, "BLOCK_W": block}
        few_kernel[grid](*arguments, **blocks, **shared)
    return mask.view(torch.bool)


def _unpacked(x: Tensor, codes: Tensor, scales: Tensor, threshold: float | Tensor) -> Tensor:
    """Some neurons after the other, so that little is ever unpacked."""
    parts = zip(torch.split(codes, NEURONS), torch.split(scales, NEURONS), strict=True)
    return torch.cat([reference.sketch(x, *part, threshold) for part in parts], 1)
