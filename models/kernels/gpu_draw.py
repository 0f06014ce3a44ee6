# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportGeneralTypeIssues=false
"""Triton: one token for each row of logits, nothing sorted.

One program a row. Its weights are written down once and read again for each question, from the
multiprocessor's own cache where they fit. What top-k and top-p keep is "all that is not below some
weight"; that weight is bisected over the bits of a float, which are ordered as the floats are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Limits
from .sizes import ceil_div, power_of_two

BLOCK, NUM_WARPS = 8192, 32  # weights at a time; as many threads as a program can have
ONE_BITS = tl.constexpr(0x3F800000)  # of 1.0, the largest weight


@triton.jit
def _from(weights_ptr, bound, size, BLOCK: tl.constexpr):
    """How many weights are not below the bound, and their sum."""
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        weights = tl.load(weights_ptr + start + tl.arange(0, BLOCK))
        kept = weights >= bound
        count += kept.to(tl.int32)
        mass += tl.where(kept, weights, 0.0)
    return tl.sum(count, 0), tl.sum(mass.to(tl.float64), 0)


@triton.jit
def _bound(weights_ptr, least, count, goal, size, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest bound that leaves at least `goal`, in weights or in their sum; `least`, above
    which `count` weights are, is one that does. Ends early where one weight is left to doubt."""
    low, high = least.to(tl.int32, bitcast=True), ONE_BITS + 1
    count_low, count_high = count, 0
    while (high - low > 1) & (count_low - count_high > 1):
        middle = low + (high - low) // 2
        found, mass = _from(weights_ptr, middle.to(tl.float32, bitcast=True), size, BLOCK)
        reached = mass if BY_MASS else found
        if reached >= goal:
            low, count_low = middle, found
        else:
            high, count_high = middle, found
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _least(weights_ptr, top_k, top_p, min_p, vocab, size, BLOCK: tl.constexpr):
    """A number up to which the limits keep the weights: the smallest kept, or just below it."""
    kth = tl.full((), 0.0, tl.float32)
    if top_k < vocab:
        kth = _bound(weights_ptr, kth, size, tl.maximum(top_k, 1), size, False, BLOCK)
    least = tl.maximum(kth, min_p)
    if top_p < 1.0:
        count, mass = _from(weights_ptr, least, size, BLOCK)
        # who is as likely as the k-th one is kept, but is no part of what top-p is a share of
        mass -= tl.maximum(count - top_k, 0) * least.to(tl.float64)
        goal = top_p.to(tl.float64) * mass
        least = _bound(weights_ptr, least, count, goal, size, True, BLOCK)
    return least


@triton.jit
def _first_above(weights_ptr, least, target, size, BLOCK: tl.constexpr):
    """The first kept weight with which the sum exceeds the target; `size` if there is none."""
    before = tl.full((), 0.0, tl.float64)
    start, found = 0, size
    while (start < size) & (found == size):
        at = start + tl.arange(0, BLOCK)
        weights = tl.load(weights_ptr + at)
        kept = tl.where(weights >= least, weights, 0.0).to(tl.float64)
        after = before + tl.sum(kept, 0)
        if after > target:
            sums = before + tl.cumsum(kept, 0)
            found = tl.min(tl.where((sums > target) & (kept > 0), at, size), 0)
        before = after
        start += BLOCK
    return found


@triton.jit
def draw_kernel(
    logits_ptr,
    temperature_ptr,
    points_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    weights_ptr,
    token_ids_ptr,
    stride,
    vocab,
    size,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row. `size` is `vocab` rounded up to whole blocks; the weights past `vocab` are zero."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    weights_ptr += row.to(tl.int64) * size
    at = tl.arange(0, BLOCK)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + at < vocab
        logits = tl.load(logits_ptr + start + at, mask=inside, other=float("-inf"))
        best = tl.maximum(best, logits)
    temperature = tl.load(temperature_ptr + row)
    top = tl.div_rn(tl.max(best, 0), temperature)
    for start in range(0, size, BLOCK):
        inside = start + at < vocab
        logits = tl.load(logits_ptr + start + at, mask=inside, other=float("-inf"))
        tl.store(weights_ptr + start + at, tl.exp(tl.div_rn(logits, temperature) - top))
    tl.debug_barrier()  # other threads read them

    least = tl.full((), 0.0, tl.float32)
    if LIMITED:
        top_k, top_p = tl.load(top_k_ptr + row).to(tl.int32), tl.load(top_p_ptr + row)
        least = _least(weights_ptr, top_k, top_p, tl.load(min_p_ptr + row), vocab, size, BLOCK)

    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        weights = tl.load(weights_ptr + start + at)
        total += tl.where(weights >= least, weights, 0.0).to(tl.float64)
    # short of 1 by more than sums in two orders differ: the last weight's sum exceeds the target
    most = tl.full((), 1 - 2**-40, tl.float64)  # a bare number would be rounded to a float32
    target = tl.minimum(tl.load(points_ptr + row), most) * tl.sum(total, 0)
    token_id = _first_above(weights_ptr, least, target, size, BLOCK)
    tl.store(token_ids_ptr + row, tl.minimum(token_id, vocab - 1).to(tl.int64))


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    """`reference.draw`."""
    num_rows, vocab = logits.shape
    assert logits.stride(1) == 1 or vocab == 1, logits.stride()
    block = min(BLOCK, max(16, power_of_two(vocab)))
    size = ceil_div(vocab, block) * block
    weights = torch.empty(num_rows, size, dtype=torch.float32, device=logits.device)
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    draw_kernel[(num_rows,)](
        logits,
        temperature,
        points,
        *(limits or (None, None, None)),
        weights,
        token_ids,
        logits.stride(0),
        vocab,
        size,
        LIMITED=limits is not None,
        BLOCK=block,
        num_warps=NUM_WARPS if block == BLOCK else 4,
    )
    return token_ids
