# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: pairs of a token and an expert that it was sent to, sorted by expert, and back to tokens.

Nothing here asks the host how many tokens an expert has.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from .gpu_launch import overlap
from .sizes import ceil_div, power_of_two

SORTED = 4096  # what the program that sorts holds of a choice at once


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every pair by its expert, then by its token, cut into tiles of one expert each. There may be
    fewer pairs than T * k, and fewer tiles: such a tile ends where it begins."""

    tokens: Tensor  # [T * k] int32
    places: Tensor  # [T, k] int32, of a token's pairs
    tiles: Tensor  # [3, tiles] int32: the expert, the first pair, where the expert's pairs end
    rows: int  # pairs of a tile
    num_experts: int


@triton.jit
def sort_kernel(
    chosen_ptr,
    tokens_ptr,
    places_ptr,
    tiles_ptr,
    num_tokens,
    num_tiles,
    CHOSEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program. It counts each expert's tokens, lays out the tiles, and counts again, now to
    tell every pair its place."""
    e = tl.arange(0, EXPERTS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    counts = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, num_tokens, BLOCK):
        t = start + tl.arange(0, BLOCK)
        counts += tl.sum(_sent(chosen_ptr, t, num_tokens, e, CHOSEN), 0)
    ends = tl.cumsum(counts, 0)
    tiles = (counts + ROWS - 1) // ROWS
    last = tl.cumsum(tiles, 0)
    for start in range(0, num_tiles, BLOCK):
        i = start + tl.arange(0, BLOCK)
        steps = i[:, None] - (last - tiles)[None, :]
        mine = ((steps >= 0) & (i[:, None] < last[None, :])).to(tl.int32)
        first = mine * ((ends - counts)[None, :] + steps * ROWS)
        tl.store(tiles_ptr + i, tl.sum(mine * e[None, :], 1), mask=i < num_tiles)
        tl.store(tiles_ptr + num_tiles + i, tl.sum(first, 1), mask=i < num_tiles)
        tl.store(tiles_ptr + 2 * num_tiles + i, tl.sum(mine * ends[None, :], 1), mask=i < num_tiles)
    begins = ends - counts
    for start in range(0, num_tokens, BLOCK):
        t = start + tl.arange(0, BLOCK)
        sent = _sent(chosen_ptr, t, num_tokens, e, CHOSEN)
        place = begins[None, :] + tl.cumsum(sent, 0) - sent
        for j in tl.static_range(CHOSEN):
            mine = _chosen(chosen_ptr, t, num_tokens, j, CHOSEN)[:, None] == e[None, :]
            at = tl.sum(tl.where(mine, place, 0), 1)
            tl.store(places_ptr + t * CHOSEN + j, at, mask=t < num_tokens)
            tl.store(tokens_ptr + at, t, mask=t < num_tokens)
        begins += tl.sum(sent, 0)


@triton.jit
def _chosen(chosen_ptr, t, num_tokens, j, CHOSEN: tl.constexpr):
    return tl.load(chosen_ptr + t * CHOSEN + j, mask=t < num_tokens, other=-1).to(tl.int32)


@triton.jit
def _sent(chosen_ptr, t, num_tokens, e, CHOSEN: tl.constexpr):
    """Whether each of the tokens was sent to each of the experts, [tokens, experts] int32; what
    stands for no token in a graph may have chosen one twice."""
    sent = (_chosen(chosen_ptr, t, num_tokens, 0, CHOSEN)[:, None] == e[None, :]).to(tl.int32)
    for j in tl.static_range(1, CHOSEN):
        sent |= (_chosen(chosen_ptr, t, num_tokens, j, CHOSEN)[:, None] == e[None, :]).to(tl.int32)
    return sent


@triton.jit
def add_kernel(
    results_ptr,
    places_ptr,
    chosen_ptr,
    weights_ptr,
    residual_ptr,
    out_ptr,
    scale,
    num_experts,
    HIDDEN: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """A token's residual, and its experts' results, weighted."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(CHOSEN):
        weight = tl.load(weights_ptr + t * num_experts + tl.load(chosen_ptr + t * CHOSEN + j))
        result = results_ptr + tl.load(places_ptr + t * CHOSEN + j).to(tl.int64) * HIDDEN
        acc += weight * tl.load(result + c, mask=c < HIDDEN, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * HIDDEN + c, mask=c < HIDDEN, other=0.0).to(tl.float32)
    y = residual + scale * acc
    tl.store(out_ptr + t * HIDDEN + c, y.to(out_ptr.dtype.element_ty), mask=c < HIDDEN)


def by_expert(routing: Routing, rows: int) -> Pairs:
    """In tiles of `rows` pairs."""
    (num_tokens, num_chosen), device = routing.chosen.shape, routing.chosen.device
    num_experts, num_pairs = routing.weights.shape[1], routing.chosen.numel()
    tiles = min(num_pairs // rows + num_experts, num_experts * ceil_div(num_tokens, rows))
    pairs = Pairs(
        torch.empty(num_pairs, dtype=torch.int32, device=device),
        torch.empty(num_tokens, num_chosen, dtype=torch.int32, device=device),
        torch.empty(3, tiles, dtype=torch.int32, device=device),
        rows,
        num_experts,
    )
    experts = power_of_two(num_experts)
    sort_kernel[(1,)](
        routing.chosen,
        pairs.tokens,
        pairs.places,
        pairs.tiles,
        num_tokens,
        tiles,
        CHOSEN=num_chosen,
        EXPERTS=experts,
        ROWS=rows,
        BLOCK=min(power_of_two(num_tokens), max(1, SORTED // experts)),
        num_warps=8,
        **overlap(device),
    )
    return pairs


def added(
    residual: Tensor, scale: float, results: Tensor, pairs: Pairs, routing: Routing
) -> Tensor:
    """residual [T, hidden] + scale * each token's results, of pairs [T * k, hidden], weighted."""
    (num_tokens, hidden), num_chosen = residual.shape, routing.chosen.shape[1]
    out, block = torch.empty_like(residual), min(1024, power_of_two(hidden))
    add_kernel[(num_tokens, ceil_div(hidden, block))](
        results,
        pairs.places,
        routing.chosen,
        routing.weights,
        residual,
        out,
        scale,
        routing.weights.shape[1],
        HIDDEN=hidden,
        CHOSEN=num_chosen,
        BLOCK=block,
        **overlap(residual.device),
    )
    return out
