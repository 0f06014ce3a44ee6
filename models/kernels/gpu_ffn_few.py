# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the sparse FFN of a few tokens. Neurons stay in their order, and rows that no token keeps
are not loaded: the dense product, but for what need not be read.

Deterministic: partial sums are added in one order. Nothing here asks the host which neurons there
are. Experts' neurons lie one after the other and are one long layer, of which a step needs so
little that the neurons that it needs are listed first.
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
from .gpu_launch import counters, overlap
from .sizes import ceil_div, power_of_two, power_of_two_in

MAX_TOKENS = 64  # beyond, nearly every neuron is kept by some token
NEURONS = 64  # of a tile
BLOCK = 512  # neurons that one program lists
WIDTH = 128  # columns at a time, in 16 bits


@triton.jit(do_not_specialize=["num_tokens"])
def any_kernel(
    mask_ptr,
    routing_ptr,
    any_ptr,
    counts_ptr,
    num_tokens,
    num_neurons,
    total,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Whether any token that was sent to an expert keeps a neuron of it, and how many neurons of
    one block are kept."""
    block, expert = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sent = tl.load(routing_ptr + t * EXPERTS + expert, mask=t < num_tokens, other=0.0) != 0
    place = t.to(tl.int64)[:, None] * total + expert * num_neurons + n[None, :]
    there = sent[:, None] & (n < num_neurons)[None, :]
    kept = tl.max(tl.load(mask_ptr + place, mask=there, other=0).to(tl.int32), 0)
    tl.store(any_ptr + expert * num_neurons + n, kept, mask=n < num_neurons)
    tl.store(counts_ptr + expert * tl.num_programs(0) + block, tl.sum(kept, 0))


@triton.jit
def list_kernel(
    any_ptr,
    counts_ptr,
    list_ptr,
    kept_ptr,
    num_neurons,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The kept neurons of one block in order, after those of the blocks before; their number."""
    block, expert = tl.program_id(0), tl.program_id(1)
    here = expert * tl.num_programs(0) + block
    n = block * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, COUNTS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    before = tl.sum(tl.load(counts_ptr + c, mask=c < here, other=0), 0)
    kept = tl.load(any_ptr + expert * num_neurons + n, mask=n < num_neurons, other=0)
    place = before + tl.cumsum(kept, 0) - kept
    tl.store(list_ptr + place, expert * num_neurons + n, mask=kept != 0)
    if here == tl.num_programs(0) * tl.num_programs(1) - 1:
        tl.store(kept_ptr, before + tl.sum(kept, 0))


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
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """The values of a tile of neurons for a few tokens, [places, TOKENS], zero where a token's mask
    says so. A neuron's place is its own, and it is told whether any token keeps it; ROUTED: its
    place is that in the list of the kept ones."""
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n, end = place, total
    if ROUTED:
        end = tl.load(kept_ptr)
        if tl.program_id(0) * BLOCK_N >= end:
            return
        n = tl.load(list_ptr + place, mask=place < end, other=0)
    there = (t < num_tokens)[None, :] & (place < end)[:, None]
    if ROUTED:
        expert = n // num_neurons
        sent = tl.load(routing_ptr + t[None, :] * EXPERTS + expert[:, None], mask=there, other=0.0)
        there = there & (sent != 0)
    kept = tl.load(mask_ptr + t.to(tl.int64)[None, :] * total + n[:, None], mask=there, other=0)
    kept = kept.to(tl.int32)
    any_token = tl.max(kept, 1)
    if not ROUTED:
        tl.store(any_ptr + n, any_token, mask=place < end)
        if tl.max(any_token, 0) == 0:
            return
    wanted = (any_token != 0)[:, None]
    row = gate_up_ptr + n.to(tl.int64)[:, None] * (2 * HIDDEN)
    gate = tl.zeros((BLOCK_N, TOKENS), tl.float32)
    up = tl.zeros((BLOCK_N, TOKENS), tl.float32)
    for start in tl.range(0, HIDDEN, BLOCK_K, num_stages=STAGES):
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
    tl.store(out, value.to(values_ptr.dtype.element_ty), mask=(place < end)[:, None])


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
    ROUTED: tl.constexpr,
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
    if ROUTED:
        end = tl.load(kept_ptr)
    for block in tl.range(split, tl.cdiv(end, BLOCK_N), SPLITS, num_stages=STAGES):
        place = block * BLOCK_N + tl.arange(0, BLOCK_N)
        if ROUTED:
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
    """How `down_kernel` cuts its work."""

    neurons: int
    columns: int
    splits: int
    stages: int


def tiles_for(num_tokens: int) -> Tiles:
    """The fastest measured on an H200 at TurboSparse-Mistral-7B's shape."""
    if num_tokens <= 16:
        return Tiles(128, 128, 7, 5)
    return Tiles(128, 128, 4, 5) if num_tokens <= 32 else Tiles(128, 64, 4, 6)


def fits(num_tokens: int, hidden: int) -> bool:
    """Whether these kernels compute such an FFN; else all its neurons are computed."""
    return num_tokens <= MAX_TOKENS and power_of_two_in(hidden) >= 16


def sparse(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
    *,
    add: Tensor | None = None,
    scale: float = 1.0,
    routing: Routing | None = None,
) -> Tensor:
    """`reference.ffn` for a few tokens: reads only the rows that any of them keeps.

    The result is scaled and added to `add` where it is given. With routing, the neurons are E
    experts' one after the other, and their values are weighted; the mask of an expert that no token
    was sent to is not read.
    """
    (num_tokens, hidden), total, device = x.shape, gate_up.shape[0], x.device
    num_experts = 1 if routing is None else routing.weights.shape[1]
    weights = None if routing is None else routing.weights
    num_neurons, half = total // num_experts, x.element_size() == 2
    tokens = power_of_two(max(16, num_tokens))
    values = torch.empty(total, tokens, dtype=x.dtype, device=device)
    any_token = torch.empty(total, dtype=torch.int32, device=device)
    listed = _listed(mask, weights, any_token, tokens) if weights is not None else (None, None)
    values_kernel[(ceil_div(total, NEURONS),)](
        x,
        gate_up,
        mask.view(torch.uint8),
        weights,
        *listed,
        values,
        any_token,
        threshold,
        num_tokens,
        num_neurons,
        total,
        HIDDEN=hidden,
        EXPERTS=num_experts,
        TOKENS=tokens,
        BLOCK_N=NEURONS,
        BLOCK_K=min(WIDTH if half else 16, power_of_two_in(hidden)),
        STAGES=(3 if tokens == 16 else 4) if half else 2,
        ACTIVATION=activation.value,
        ROUTED=routing is not None,
        num_warps=4,
        **overlap(device),
    )
    tiles = tiles_for(num_tokens) if half else Tiles(32, 32, 4, 2)
    blocks = ceil_div(hidden, tiles.columns)
    partial = torch.empty(
        blocks, tiles.splits, tiles.columns, tokens, dtype=torch.float32, device=device
    )
    out = torch.empty_like(x)
    down_kernel[(blocks, tiles.splits)](
        values,
        down,
        any_token,
        *listed,
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
        STAGES=tiles.stages,
        ADD=add is not None,
        ROUTED=routing is not None,
        num_warps=4,
        **overlap(device),
    )
    return out


def _listed(mask: Tensor, weights: Tensor, any_token: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The neurons that any token keeps of the experts it was sent to, in order; their number."""
    (num_tokens, num_experts), (total,), device = weights.shape, any_token.shape, mask.device
    num_neurons = total // num_experts
    grid = (ceil_div(num_neurons, BLOCK), num_experts)
    counts = torch.empty(grid[0] * grid[1], dtype=torch.int32, device=device)
    kept, num_kept = torch.empty_like(any_token), torch.empty(1, dtype=torch.int32, device=device)
    any_kernel[grid](
        mask.view(torch.uint8),
        weights,
        any_token,
        counts,
        num_tokens,
        num_neurons,
        total,
        EXPERTS=num_experts,
        TOKENS=tokens,
        BLOCK=BLOCK,
        **overlap(device),
    )
    list_kernel[grid](
        any_token,
        counts,
        kept,
        num_kept,
        num_neurons,
        COUNTS=power_of_two(len(counts)),
        BLOCK=BLOCK,
        **overlap(device),
    )
    return kept, num_kept
