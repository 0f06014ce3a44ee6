# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the sparse FFN of a few tokens: the dense product, but for rows that no token keeps.

Where few are kept they are listed first, and every program gets as many as any other. Where most
are, neurons stay in their order, and rows are left out of the tiles. Experts' neurons lie one after
the other and are one long layer, of which a step always needs little.

Deterministic: partial sums are added in one order. Nothing here asks the host which neurons there
are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from ..config import Activation
from .gpu_gated import activate
from .gpu_launch import counters, multiprocessors, overlap
from .gpu_list import listed_and_normed, listed_of_experts
from .gpu_norm import rms_norm
from .sizes import ceil_div, fill_tiles, power_of_two, power_of_two_in

MAX_TOKENS = 64  # beyond, nearly every neuron is kept by some token
ROWS = 64  # of a tile
LISTED = 4  # tokens up to which it pays to list the neurons that they keep


@triton.jit(do_not_specialize=["num_tokens"])
def values_kernel(
    x_ptr,
    gate_up_ptr,
    mask_ptr,
    routing_ptr,
    list_ptr,
    kept_ptr,
    values_ptr,
    any_ptr,
    threshold,
    num_tokens,
    num_neurons,
    total,
    HIDDEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LISTED: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Values of neurons for a few tokens, [places, TOKENS], zero where a token's mask says so.

    A neuron's place is its own, and it is told whether any token keeps it; LISTED: its place is
    that in the list of the kept ones, of which every program takes as many as any other.
    """
    i = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    end, rows = total, ROWS
    if LISTED:
        end = tl.load(kept_ptr)
        waves = tl.maximum(1, tl.cdiv(end, tl.num_programs(0) * ROWS))
        rows = tl.maximum(1, tl.cdiv(end, tl.num_programs(0) * waves))
    for tile in range(tl.program_id(0), tl.cdiv(end, rows), tl.num_programs(0)):
        place = tile * rows + i
        mine = (i < rows) & (place < end)
        n = place
        if LISTED:
            n = tl.load(list_ptr + place, mask=mine, other=0)
        there = (t < num_tokens)[None, :] & mine[:, None]
        if ROUTED:
            sent = routing_ptr + t[None, :] * EXPERTS + (n // num_neurons)[:, None]
            sent = tl.load(sent, mask=there, other=0.0)
            there = there & (sent != 0)
        kept = tl.load(mask_ptr + t.to(tl.int64)[None, :] * total + n[:, None], mask=there, other=0)
        kept = kept.to(tl.int32)
        any_token = tl.max(kept, 1)
        if not LISTED:
            tl.store(any_ptr + n, any_token, mask=mine)
        wanted = (any_token != 0)[:, None]
        row = gate_up_ptr + n.to(tl.int64)[:, None] * (2 * HIDDEN)
        gate = tl.zeros((BLOCK_N, TOKENS), tl.float32)
        up = tl.zeros((BLOCK_N, TOKENS), tl.float32)
        stop = tl.where(tl.max(any_token, 0) != 0, HIDDEN, 0)
        for start in tl.range(0, stop, BLOCK_K, num_stages=STAGES):
            at = start + k
            g = tl.load(row + at[None, :], mask=wanted, other=0.0)
            u = tl.load(row + HIDDEN + at[None, :], mask=wanted, other=0.0)
            x = tl.load(
                x_ptr + t[None, :] * HIDDEN + at[:, None], mask=(t < num_tokens)[None, :], other=0.0
            )
            gate = tl.dot(g, x, gate, input_precision="ieee")
            up = tl.dot(u, x, up, input_precision="ieee")
        value = tl.where(kept != 0, activate(gate, up, threshold, ACTIVATION), 0.0)
        if ROUTED:
            value *= sent
        out = values_ptr + place.to(tl.int64)[:, None] * TOKENS + t[None, :]
        tl.store(out, value.to(values_ptr.dtype.element_ty), mask=mine[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def down_kernel(
    values_ptr,
    down_ptr,
    any_ptr,
    list_ptr,
    kept_ptr,
    partial_ptr,
    counter_ptr,
    add_ptr,
    out_ptr,
    scale,
    num_tokens,
    total,
    HIDDEN: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
    LISTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A share of the neurons' output rows, weighted and summed, for a block of columns; the last
    program of a block adds the shares."""
    c = tl.arange(0, BLOCK_C)
    column = tl.program_id(0) * BLOCK_C + c
    split = tl.program_id(1)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros((BLOCK_C, TOKENS), tl.float32)
    end = total
    if LISTED:
        end = tl.load(kept_ptr)
    for block in tl.range(split, tl.cdiv(end, BLOCK_N), SPLITS, num_stages=STAGES):
        place = block * BLOCK_N + tl.arange(0, BLOCK_N)
        if LISTED:
            wanted = place < end
            n = tl.load(list_ptr + place, mask=wanted, other=0)
        else:
            wanted = tl.load(any_ptr + place, mask=place < end, other=0) != 0
            n = place
        values = tl.load(
            values_ptr + place.to(tl.int64)[:, None] * TOKENS + t[None, :],
            mask=wanted[:, None],
            other=0.0,
        )
        rows = tl.load(
            down_ptr + n.to(tl.int64)[:, None] * HIDDEN + column[None, :],
            mask=wanted[:, None] & (column < HIDDEN)[None, :],
            other=0.0,
        )
        acc = tl.dot(tl.trans(rows), values, acc, input_precision="ieee")
    last = True
    if SPLITS > 1:
        shares = (
            partial_ptr + (tl.program_id(0) * SPLITS * BLOCK_C + c[:, None]) * TOKENS + t[None, :]
        )
        tl.store(shares + split * BLOCK_C * TOKENS, acc)
        tl.debug_barrier()
        counter = counter_ptr + tl.program_id(0)
        last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.store(counter, 0)
            acc = tl.zeros((BLOCK_C, TOKENS), tl.float32)
            for part in tl.static_range(SPLITS):
                acc += tl.load(shares + part * BLOCK_C * TOKENS, cache_modifier=".cg")
        there = (t < num_tokens)[None, :] & (column < HIDDEN)[:, None]
        at = t[None, :] * HIDDEN + column[:, None]
        if ADD:
            acc = tl.load(add_ptr + at, mask=there, other=0.0).to(tl.float32) + scale * acc
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=there)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the two kernels cut their work: `rows` neurons to a program that finds values, so many
    programs a multiprocessor where neurons are listed; and the blocks that are added up."""

    rows: int
    programs: int
    width: int  # columns at a time
    stages: int
    neurons: int
    columns: int
    splits: int
    down_stages: int


def tiles_for(num_tokens: int, listed: bool, half: bool) -> Tiles:
    """The fastest measured on an H200 at TurboSparse-Mistral-7B's and -Mixtral-47B's shapes."""
    if not half:
        return Tiles(ROWS, 1, 16, 2, 32, 32, 4, 2)
    if listed and num_tokens > 16:
        return Tiles(ROWS, 2, 64, 5 if num_tokens <= 32 else 4, 128, 128, 4, 8)
    if listed:
        return Tiles(ROWS, 1, 128, 5, 128, 128, 4, 8)
    if num_tokens <= 32:
        return Tiles(56, 2, 128, 3 if num_tokens <= 16 else 4, 128, 64, 4, 8)
    return Tiles(56, 2, 128, 4, 128, 64, 4, 6)


def fits(num_tokens: int, hidden: int) -> bool:
    """Whether these kernels compute such an FFN; else all its neurons are computed."""
    return num_tokens <= MAX_TOKENS and fill_tiles(hidden)


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
    routing: Routing | None = None,
) -> Tensor:
    """`reference.ffn` for a few tokens: reads only the rows that any of them keeps.

    x is normed by norm [hidden] and eps first, the result scaled and added to `add`, where they are
    given. With routing, the neurons are E experts' one after the other, and their values are
    weighted; the mask of an expert that no token was sent to is not read.
    """
    (num_tokens, hidden), total, device = x.shape, gate_up.shape[0], x.device
    num_experts = 1 if routing is None else routing.weights.shape[1]
    num_neurons, half = total // num_experts, x.element_size() == 2
    tokens = power_of_two(max(16, num_tokens))
    values = torch.empty(total, tokens, dtype=x.dtype, device=device)
    any_token = torch.empty(total, dtype=torch.int32, device=device)
    neurons, count = None, None
    if routing is not None:
        neurons, count = listed_of_experts(mask, routing.weights)
    elif num_tokens <= LISTED:
        neurons, count, x = listed_and_normed(mask, x, norm, eps)
        norm = None
    if norm is not None:
        x = rms_norm(x, norm, eps)
    tiles = tiles_for(num_tokens, neurons is not None, half)
    programs = ceil_div(total, tiles.rows)
    if neurons is not None:
        programs = min(programs, tiles.programs * multiprocessors(device))
    values_kernel[(programs,)](
        x,
        gate_up,
        mask.view(torch.uint8),
        None if routing is None else routing.weights,
        neurons,
        count,
        values,
        any_token,
        threshold,
        num_tokens,
        num_neurons,
        total,
        HIDDEN=hidden,
        EXPERTS=num_experts,
        TOKENS=tokens,
        ROWS=tiles.rows,
        BLOCK_N=ROWS,
        BLOCK_K=min(tiles.width, power_of_two_in(hidden)),
        STAGES=tiles.stages,
        ACTIVATION=activation.value,
        LISTED=neurons is not None,
        ROUTED=routing is not None,
        num_warps=4,
        **overlap(device),
    )
    blocks = ceil_div(hidden, tiles.columns)
    partial = torch.empty(
        blocks, tiles.splits, tiles.columns, tokens, dtype=torch.float32, device=device
    )
    out = torch.empty_like(x)
    down_kernel[(blocks, tiles.splits)](
        values,
        down,
        any_token,
        neurons,
        count,
        partial,
        counters(device),
        add,
        out,
        scale,
        num_tokens,
        total,
        HIDDEN=hidden,
        SPLITS=tiles.splits,
        TOKENS=tokens,
        BLOCK_N=tiles.neurons,
        BLOCK_C=tiles.columns,
        STAGES=tiles.down_stages,
        ADD=add is not None,
        LISTED=neurons is not None,
        num_warps=4,
        **overlap(device),
    )
    return out
