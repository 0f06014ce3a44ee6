# pyright: basic, reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: a softmax over blocks of positions, and the shares of a context, attended by several
programs, joined by the last of them."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # makes powers of e powers of two


@triton.jit
def take(scores, seen, v, best, weight, acc):
    """One block more in a running softmax, in powers of two: scores [GROUP, BLOCK], seen [BLOCK],
    values v [BLOCK, DIM]."""
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    safe = tl.where(new_best == float("-inf"), 0.0, new_best)
    p = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(best - safe)
    weight = weight * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_best, weight, acc


@triton.jit
def write(
    out_ptr,
    partial_ptr,
    sums_ptr,
    counter_ptr,
    row,
    split,
    num_shares,
    best,
    weight,
    acc,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    JOINED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Write what one token's queries of one K/V head have found, if nobody shares its positions;
    else leave it to the last program of the head, which joins the shares in one order.

    row: token * K + head, of which there are `num_shares`, up to SPLITS; best, weight [GROUP] and
    acc [GROUP, DIM] are a running softmax's.
    """
    g, d = tl.arange(0, GROUP), tl.arange(0, DIM)
    kind = out_ptr.dtype.element_ty
    heads = row * HEADS + g
    if SPLITS == 1:
        whole_out = (g < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        out = (acc / weight[:, None]).to(kind)
        tl.store(out_ptr + heads[:, None] * HEAD_DIM + d[None, :], out, mask=whole_out)
    else:
        place = heads * SPLITS + split
        tl.store(partial_ptr + place[:, None] * DIM + d[None, :], acc, mask=(g < HEADS)[:, None])
        tl.store(sums_ptr + 2 * place, best, mask=g < HEADS)
        tl.store(sums_ptr + 2 * place + 1, weight, mask=g < HEADS)
        tl.debug_barrier()
        counter = counter_ptr + row
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_shares - 1:
            tl.store(counter, 0)
            i = tl.arange(0, JOINED)
            head = row * HEADS + tl.minimum(i, HEADS - 1)
            share = tl.arange(0, SPLITS)[None, :]
            there, shares = share < num_shares, head[:, None] * SPLITS + share
            bests, weights = sums_ptr + 2 * shares, sums_ptr + 2 * shares + 1
            bests = tl.load(bests, mask=there, other=float("-inf"), cache_modifier=".cg")
            weights = tl.load(weights, mask=there, other=0.0, cache_modifier=".cg")
            factors = tl.exp2(bests - tl.max(bests, 1)[:, None])
            parts = partial_ptr + shares[:, :, None] * DIM + d[None, None, :]
            parts = tl.load(parts, mask=there[:, :, None], other=0.0, cache_modifier=".cg")
            joined = tl.sum(parts * factors[:, :, None], 1)
            joined = (joined / tl.sum(weights * factors, 1)[:, None]).to(kind)
            whole_head = (i < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
            tl.store(out_ptr + head[:, None] * HEAD_DIM + d[None, :], joined, mask=whole_head)
