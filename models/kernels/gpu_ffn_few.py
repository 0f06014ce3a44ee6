# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the sparse FFN of a few tokens. Neurons stay in their order, and rows that no token keeps
are not loaded: the dense product, but for what need not be read.

Deterministic: partial sums are added in one order. Nothing here asks the host which neurons there
are. Experts' neurons lie one after the other and are one long layer: who was sent no token keeps
none.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..config import Activation
from .gpu_gated import activate
from .gpu_launch import counters, overlap
from .sizes import ceil_div, power_of_two, power_of_two_in

MAX_TOKENS = 64  # beyond, nearly every neuron is kept by some token
NEURONS = 64  # of a tile
WIDTH = 128  # columns at a time, in 16 bits


@triton.jit(do_not_specialize=["num_tokens"])
def values_kernel(
    x_ptr,
    gate_up_ptr,
    mask_ptr,
    routing_ptr,
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
    """The values of a tile of neurons for a few tokens, [neurons, TOKENS], zero where a token's
    mask says so; and whether any token keeps a neuron."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    there = (t < num_tokens)[None, :] & (n < total)[:, None]
    if ROUTED:
        expert = tl.program_id(0) * BLOCK_N // num_neurons
        sent = tl.load(routing_ptr + t * EXPERTS + expert, mask=t < num_tokens, other=0.0)
        there = there & (sent != 0)[None, :]
    place = t.to(tl.int64)[None, :] * total + n[:, None]
    kept = tl.load(mask_ptr + place, mask=there, other=0).to(tl.int32)
    any_token = tl.max(kept, 1)
    tl.store(any_ptr + n, any_token, mask=n < total)
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
        value *= sent[None, :]
    out = values_ptr + n.to(tl.int64)[:, None] * TOKENS + t[None, :]
    tl.store(out, value.to(values_ptr.dtype.element_ty), mask=(n < total)[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def down_kernel(
    values_ptr,
    down_ptr,
    any_ptr,
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
    for block in tl.range(split, tl.cdiv(total, BLOCK_N), SPLITS, num_stages=STAGES):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        wanted = tl.load(any_ptr + n, mask=n < total, other=0) != 0
        values = tl.load(
            values_ptr + n.to(tl.int64)[:, None] * TOKENS + t[None, :],
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
        place = (
            partial_ptr + (tl.program_id(0) * SPLITS * BLOCK_C + c[:, None]) * TOKENS + t[None, :]
        )
        tl.store(place + split * BLOCK_C * TOKENS, acc)
        tl.debug_barrier()
        counter = counter_ptr + tl.program_id(0)
        last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.store(counter, 0)
            acc = tl.zeros((BLOCK_C, TOKENS), tl.float32)
            for part in tl.static_range(SPLITS):
                acc += tl.load(place + part * BLOCK_C * TOKENS, cache_modifier=".cg")
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


def fits(num_tokens: int, hidden: int, num_neurons: int, num_experts: int) -> bool:
    """Whether these kernels compute such an FFN; else all its neurons are computed."""
    tiled = num_experts == 1 or power_of_two_in(num_neurons) >= 16
    return num_tokens == 1 or (num_tokens <= MAX_TOKENS and power_of_two_in(hidden) >= 16 and tiled)


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
    routing: Tensor | None = None,
) -> Tensor:
    """`reference.ffn` for a few tokens: reads only the rows that any of them keeps.

    The result is scaled and added to `add` where it is given. With routing [T, E] float32, the
    neurons are E experts' one after the other, and their values are weighted by it; the mask of an
    expert that no token was sent to is not read.
    """
    (num_tokens, hidden), total, device = x.shape, gate_up.shape[0], x.device
    num_experts = 1 if routing is None else routing.shape[1]
    num_neurons, half = total // num_experts, x.element_size() == 2
    tokens = power_of_two(max(16, num_tokens))
    rows = NEURONS if num_experts == 1 else min(NEURONS, power_of_two_in(num_neurons))
    values = torch.empty(total, tokens, dtype=x.dtype, device=device)
    any_token = torch.empty(total, dtype=torch.int32, device=device)
    values_kernel[(ceil_div(total, rows),)](
        x,
        gate_up,
        mask.view(torch.uint8),
        routing,
        values,
        any_token,
        threshold,
        num_tokens,
        num_neurons,
        total,
        HIDDEN=hidden,
        EXPERTS=num_experts,
        TOKENS=tokens,
        BLOCK_N=rows,
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
        num_warps=4,
        **overlap(device),
    )
    return out
