# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the sparse FFN. One token's kept neurons are listed, and their rows read one by one; the
neurons of a few tokens stay in their order, and rows that no token keeps are not loaded.

Deterministic: partial sums are added in one order. Nothing here asks the host how many neurons
there are. Experts' neurons lie one after the other and are one long layer: who was sent no token
keeps none.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..config import Activation
from .gpu_launch import counters, overlap
from .sizes import ceil_div, power_of_two, power_of_two_in

MAX_TOKENS = 64  # beyond, nearly every neuron is kept by some token
BLOCK = 1024  # neurons that one program lists
PROGRAMS = 132  # that share the neurons of one token: one for each of a Hopper's multiprocessors
NEURONS = 64  # of a tile


@triton.jit
def activate(gate, up, threshold, ACTIVATION: tl.constexpr):
    """A neuron's value from its projections, as `reference.activate`."""
    if ACTIVATION == "drelu":
        return tl.maximum(gate, 0.0) * tl.maximum(up, 0.0)
    elif ACTIVATION == "relu":
        return tl.maximum(gate, 0.0) * up
    elif ACTIVATION == "fatrelu":
        return tl.where(gate >= threshold, gate, 0.0) * up
    else:
        return gate * tl.sigmoid(gate) * up


@triton.jit
def list_kernel(
    mask_ptr,
    routing_ptr,
    list_ptr,
    total_ptr,
    num_neurons,
    ALL: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token's kept neurons in order, and how many they are. A program lists one block of one
    expert, and counts what comes before it."""
    block, expert = tl.program_id(0), tl.program_id(1)
    a = tl.arange(0, ALL)
    n = block * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    before = 0
    routed = True
    if ROUTED:
        for other in range(expert):
            sent = tl.load(routing_ptr + other) != 0
            there = tl.load(
                mask_ptr + other * num_neurons + a, mask=(a < num_neurons) & sent, other=0
            )
            before += tl.sum(there.to(tl.int32), 0)
        routed = tl.load(routing_ptr + expert) != 0
    mask_ptr += expert * num_neurons
    earlier = tl.load(mask_ptr + a, mask=(a < block * BLOCK) & routed, other=0)
    before += tl.sum(earlier.to(tl.int32), 0)
    kept = tl.load(mask_ptr + n, mask=(n < num_neurons) & routed, other=0).to(tl.int32)
    place = before + tl.cumsum(kept, 0) - kept
    tl.store(list_ptr + place, expert * num_neurons + n, mask=kept != 0)
    if (block == tl.num_programs(0) - 1) & (expert == tl.num_programs(1) - 1):
        tl.store(total_ptr, before + tl.sum(kept, 0))


@triton.jit
def one_kernel(
    x_ptr,
    gate_up_ptr,
    down_ptr,
    routing_ptr,
    list_ptr,
    total_ptr,
    partial_ptr,
    threshold,
    num_neurons,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token: a share of the listed neurons, their values and the sum of their output rows."""
    k = tl.arange(0, WIDTH)
    inside = k < HIDDEN
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.load(total_ptr)
    x = tl.load(x_ptr + k, mask=inside, other=0.0).to(tl.float32)
    kind = x_ptr.dtype.element_ty
    out = tl.zeros((WIDTH,), tl.float32)
    blocks = tl.cdiv(total, BLOCK_N)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        neurons = tl.load(list_ptr + places, mask=places < total, other=0)
        whole = (places < total)[:, None] & inside[None, :]
        row = gate_up_ptr + neurons.to(tl.int64)[:, None] * (2 * HIDDEN) + k[None, :]
        gate = tl.load(row, mask=whole, other=0.0).to(tl.float32)
        up = tl.load(row + HIDDEN, mask=whole, other=0.0).to(tl.float32)
        row = down_ptr + neurons.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        down = tl.load(row, mask=whole, other=0.0).to(tl.float32)
        gate = tl.sum(gate * x[None, :], 1)
        up = tl.sum(up * x[None, :], 1)
        value = activate(gate, up, threshold, ACTIVATION).to(kind).to(tl.float32)
        if ROUTED:
            value *= tl.load(routing_ptr + neurons // num_neurons)
        out += tl.sum(value[:, None] * down, 0)
    tl.store(partial_ptr + tl.program_id(0) * HIDDEN + k, out, mask=inside)


@triton.jit
def sum_kernel(
    partial_ptr,
    out_ptr,
    num_parts,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """The partial sums, added in one order."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.arange(0, PARTS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    parts = tl.load(
        partial_ptr + part[:, None] * HIDDEN + column[None, :],
        mask=(part < num_parts)[:, None] & (column < HIDDEN)[None, :],
        other=0.0,
    )
    out = tl.sum(parts, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + column, out, mask=column < HIDDEN)


@triton.jit
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
    """The values of a tile of neurons for a few tokens, [neurons, TOKENS], zero where a token's mask
    says so; and whether any token keeps a neuron."""
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


@triton.jit
def down_kernel(
    values_ptr,
    down_ptr,
    any_ptr,
    partial_ptr,
    counter_ptr,
    out_ptr,
    num_tokens,
    total,
    HIDDEN: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
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
        out = out_ptr + t[None, :] * HIDDEN + column[:, None]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def gated_kernel(
    projected_ptr,
    mask_ptr,
    out_ptr,
    num_elements,
    threshold,
    ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Values from projections that lie pairwise, gate before up; masked where there is a mask."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_elements
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(projected_ptr + 2 * at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(projected_ptr + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    value = activate(gate, up, threshold, ACTIVATION)
    if MASKED:
        value = tl.where(tl.load(mask_ptr + at, mask=inside, other=0) != 0, value, 0.0)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


def activated(
    projected: Tensor, mask: Tensor | None, activation: Activation, threshold: float
) -> Tensor:
    """Projections [T, 2 N], a neuron's gate before its up -> values [T, N], zero where the mask
    says so."""
    shape = projected.shape[0], projected.shape[1] // 2
    out = torch.empty(shape, device=projected.device, dtype=projected.dtype)
    block = 1024
    gated_kernel[(ceil_div(out.numel(), block),)](
        projected,
        out if mask is None else mask.view(torch.uint8),
        out,
        out.numel(),
        threshold,
        ACTIVATION=activation.value,
        MASKED=mask is not None,
        BLOCK=block,
        **overlap(out.device),
    )
    return out


@dataclass(frozen=True, slots=True)
class Tiles:
    """How `down_kernel` cuts its work."""

    neurons: int
    columns: int
    splits: int
    stages: int


def tiles_for(num_tokens: int) -> Tiles:
    """The fastest measured on an H200 at TurboSparse-Mistral-7B's shape."""
    return Tiles(128, 128, 7, 3) if num_tokens <= 16 else Tiles(128, 64, 4, 4)


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
    routing: Tensor | None = None,
) -> Tensor:
    """`reference.ffn` for shapes that `fits`: reads only the rows that some token keeps.

    With routing [T, E] float32, the neurons are E experts' one after the other, and their values
    are weighted by it; the mask of an expert that no token was sent to is not read.
    """
    if x.shape[0] == 1:
        return _one(x, gate_up, down, mask, activation, threshold, routing)
    return _few(x, gate_up, down, mask, activation, threshold, routing)


def _one(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
    routing: Tensor | None,
) -> Tensor:
    hidden, total, device = x.shape[1], gate_up.shape[0], x.device
    num_experts = 1 if routing is None else routing.shape[1]
    num_neurons = total // num_experts
    shared = {"ROUTED": routing is not None, **overlap(device)}
    kept = torch.empty(total, dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    list_kernel[(ceil_div(num_neurons, BLOCK), num_experts)](
        mask.view(torch.uint8),
        routing,
        kept,
        count,
        num_neurons,
        ALL=power_of_two(num_neurons),
        BLOCK=BLOCK,
        **shared,
    )
    half = x.element_size() == 2
    programs = min(PROGRAMS, ceil_div(total, 2))
    partial = torch.empty(programs, hidden, dtype=torch.float32, device=device)
    one_kernel[(programs,)](
        x,
        gate_up,
        down,
        routing,
        kept,
        count,
        partial,
        threshold,
        num_neurons,
        HIDDEN=hidden,
        WIDTH=power_of_two(hidden),
        BLOCK_N=2 if half else 1,
        STAGES=4 if half else 3,
        ACTIVATION=activation.value,
        num_warps=8 if hidden > 1024 else 4,
        **shared,
    )
    out = torch.empty_like(x)
    sum_kernel[(ceil_div(hidden, 64),)](
        partial,
        out,
        programs,
        HIDDEN=hidden,
        PARTS=power_of_two(programs),
        BLOCK_C=64,
        **overlap(device),
    )
    return out


def _few(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
    routing: Tensor | None,
) -> Tensor:
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
        BLOCK_K=min(64 if half else 16, power_of_two_in(hidden)),
        STAGES=6 if half else 2,
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
        out,
        num_tokens,
        total,
        HIDDEN=hidden,
        SPLITS=tiles.splits,
        TOKENS=tokens,
        BLOCK_N=tiles.neurons,
        BLOCK_C=tiles.columns,
        STAGES=tiles.stages,
        num_warps=4,
        **overlap(device),
    )
    return out
