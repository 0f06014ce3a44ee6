# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the sparse FFN. List the neurons that any token keeps, compute their values, add up
their output rows.

Deterministic: neurons are listed in order, and partial sums are added in a fixed one. Nothing here
asks the host how many neurons there are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..config import Activation
from .sizes import ceil_div, power_of_two

SEGMENT = 64  # neurons that one program lists
MAX_ROWS = 1  # tokens up to which a row is multiplied elementwise; beyond, on tensor cores
MAX_TOKENS = 64  # beyond, nearly every neuron is kept by some token
MAX_PROGRAMS = 528  # four for each of a Hopper's multiprocessors


@triton.jit
def list_kernel(mask_ptr, list_ptr, count_ptr, num_tokens, num_neurons, SEGMENT: tl.constexpr):
    """One segment's kept neurons, in order, and how many they are."""
    segment = tl.program_id(0)
    neurons = segment * SEGMENT + tl.arange(0, SEGMENT)
    inside = neurons < num_neurons
    kept = tl.zeros((SEGMENT,), tl.int32)
    for t in range(num_tokens):
        kept |= tl.load(mask_ptr + t * num_neurons + neurons, mask=inside, other=0).to(tl.int32)
    place = tl.cumsum(kept, 0) - kept
    tl.store(list_ptr + segment * SEGMENT + place, neurons, mask=kept != 0)
    tl.store(count_ptr + segment, tl.sum(kept, 0))


@triton.jit
def listed(list_ptr, counts, ends, places, SEGMENT: tl.constexpr):
    """The neurons at these places of all segments' lists joined; `ends` cumulates `counts`."""
    segment = tl.sum((ends[None, :] <= places[:, None]).to(tl.int32), 1)
    start = tl.sum(tl.where(ends[None, :] <= places[:, None], counts[None, :], 0), 1)
    inside = places < tl.sum(counts, 0)
    return tl.load(list_ptr + segment * SEGMENT + places - start, mask=inside, other=0), inside


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
def values_kernel(
    x_ptr,
    gate_up_ptr,
    mask_ptr,
    list_ptr,
    count_ptr,
    values_ptr,
    num_tokens,
    num_neurons,
    hidden,
    num_segments,
    threshold,
    ACTIVATION: tl.constexpr,
    TOKENS: tl.constexpr,
    USE_DOT: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Every listed neuron's value for every token, zero where that token's mask says so."""
    of_segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count_ptr + of_segment, mask=of_segment < num_segments, other=0)
    ends = tl.cumsum(counts, 0)
    total = tl.sum(counts, 0)
    t = tl.arange(0, TOKENS)
    k = tl.arange(0, BLOCK_K)
    for block in range(tl.program_id(0), tl.cdiv(total, BLOCK_N), tl.num_programs(0)):
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        neurons, inside = listed(list_ptr, counts, ends, places, SEGMENT)
        row = gate_up_ptr + neurons.to(tl.int64)[:, None] * (2 * hidden)
        if USE_DOT:
            gate = tl.zeros((TOKENS, BLOCK_N), tl.float32)
            up = tl.zeros((TOKENS, BLOCK_N), tl.float32)
        else:
            gate = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
            up = tl.zeros((TOKENS, BLOCK_N, BLOCK_K), tl.float32)
        for start in range(0, hidden, BLOCK_K):
            at = start + k
            x = tl.load(
                x_ptr + t[:, None] * hidden + at[None, :],
                mask=(t[:, None] < num_tokens) & (at[None, :] < hidden),
                other=0.0,
            )
            whole = inside[:, None] & (at[None, :] < hidden)
            g = tl.load(row + at[None, :], mask=whole, other=0.0)
            u = tl.load(row + hidden + at[None, :], mask=whole, other=0.0)
            if USE_DOT:
                gate = tl.dot(x, tl.trans(g), gate, input_precision="ieee")
                up = tl.dot(x, tl.trans(u), up, input_precision="ieee")
            else:
                x32 = x.to(tl.float32)[:, None, :]
                gate += x32 * g.to(tl.float32)[None, :, :]
                up += x32 * u.to(tl.float32)[None, :, :]
        if not USE_DOT:
            gate = tl.sum(gate, 2)
            up = tl.sum(up, 2)
        kept = tl.load(
            mask_ptr + t[:, None] * num_neurons + neurons[None, :],
            mask=(t[:, None] < num_tokens) & inside[None, :],
            other=0,
        )
        value = tl.where(kept != 0, activate(gate, up, threshold, ACTIVATION), 0.0)
        tl.store(
            values_ptr + t[:, None] * num_neurons + places[None, :],
            value.to(values_ptr.dtype.element_ty),
            mask=(t[:, None] < num_tokens) & inside[None, :],
        )


@triton.jit
def down_kernel(
    values_ptr,
    down_ptr,
    list_ptr,
    count_ptr,
    partial_ptr,
    num_tokens,
    num_neurons,
    hidden,
    num_segments,
    TOKENS: tl.constexpr,
    USE_DOT: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One share of the listed rows, weighted and summed, for one block of output columns."""
    of_segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count_ptr + of_segment, mask=of_segment < num_segments, other=0)
    ends = tl.cumsum(counts, 0)
    total = tl.sum(counts, 0)
    t = tl.arange(0, TOKENS)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    acc = tl.zeros((TOKENS, BLOCK_C), tl.float32)
    for block in range(split, tl.cdiv(total, BLOCK_N), tl.num_programs(1)):
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        neurons, inside = listed(list_ptr, counts, ends, places, SEGMENT)
        rows = tl.load(
            down_ptr + neurons.to(tl.int64)[:, None] * hidden + column[None, :],
            mask=inside[:, None] & (column[None, :] < hidden),
            other=0.0,
        )
        value = tl.load(
            values_ptr + t[:, None] * num_neurons + places[None, :],
            mask=(t[:, None] < num_tokens) & inside[None, :],
            other=0.0,
        )
        if USE_DOT:
            acc = tl.dot(value, rows, acc, input_precision="ieee")
        else:
            product = value.to(tl.float32)[:, :, None] * rows.to(tl.float32)[None, :, :]
            acc += tl.sum(product, 1)
    tl.store(
        partial_ptr + (split * num_tokens + t[:, None]) * hidden + column[None, :],
        acc,
        mask=(t[:, None] < num_tokens) & (column[None, :] < hidden),
    )


@triton.jit
def sum_kernel(partial_ptr, out_ptr, num_elements, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The partial sums, added in one order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    parts = tl.load(
        partial_ptr + split[:, None] * num_elements + at[None, :],
        mask=at[None, :] < num_elements,
        other=0.0,
    )
    tl.store(out_ptr + at, tl.sum(parts, 0).to(out_ptr.dtype.element_ty), mask=at < num_elements)


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
):
    """Values from projections that lie pairwise, gate before up; masked where there is a mask."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_elements
    gate = tl.load(projected_ptr + 2 * at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(projected_ptr + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    value = activate(gate, up, threshold, ACTIVATION)
    if MASKED:
        value = tl.where(tl.load(mask_ptr + at, mask=inside, other=0) != 0, value, 0.0)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


def gated(
    x: Tensor, gate_up: Tensor, mask: Tensor | None, activation: Activation, threshold: float
) -> Tensor:
    """Every neuron's value, zero where the mask says so: -> [T, N]."""
    projected = x @ gate_up.view(-1, x.shape[1]).T  # [T, 2 N], a neuron's gate before its up
    out = torch.empty(x.shape[0], gate_up.shape[0], device=x.device, dtype=x.dtype)
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
    )
    return out


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the two kernels cut their work: rows by columns, warps, loads in flight."""

    values: tuple[int, int, int, int]
    down: tuple[int, int, int, int]
    splits: int  # programs that share one block of output columns


def tiles_for(num_tokens: int, element_size: int) -> Tiles:
    """The fastest measured on an H200 at TurboSparse-Mistral-7B's shape; smaller for fp32."""
    tiles = ONE if num_tokens <= MAX_ROWS else FEW if num_tokens <= 16 else MANY
    if element_size == 2:
        return tiles
    (rows, columns, warps, _), (down_rows, down_columns, down_warps, _) = tiles.values, tiles.down
    values = (rows, max(16, columns // 4), warps, 2)
    return Tiles(values, (down_rows, max(16, down_columns // 2), down_warps, 2), tiles.splits)


def sparse(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor,
    activation: Activation,
    threshold: float,
) -> Tensor:
    """`reference.ffn` for at most MAX_TOKENS tokens: reads only the rows that any of them keeps."""
    num_tokens, hidden = x.shape
    num_neurons = gate_up.shape[0]
    device = x.device
    mask = mask.view(torch.uint8)
    tiles = tiles_for(num_tokens, x.element_size())
    num_segments = ceil_div(num_neurons, SEGMENT)
    kept = torch.empty(num_segments * SEGMENT, dtype=torch.int32, device=device)
    counts = torch.empty(num_segments, dtype=torch.int32, device=device)
    values = torch.empty(num_tokens, num_neurons, dtype=x.dtype, device=device)
    partial = torch.empty(tiles.splits, num_tokens, hidden, dtype=torch.float32, device=device)
    out = torch.empty_like(x)
    list_kernel[(num_segments,)](mask, kept, counts, num_tokens, num_neurons, SEGMENT=SEGMENT)
    use_dot = num_tokens > MAX_ROWS
    shared = {
        "TOKENS": power_of_two(max(num_tokens, 16) if use_dot else num_tokens),
        "USE_DOT": use_dot,
        "SEGMENT": SEGMENT,
        "SEGMENTS": power_of_two(num_segments),
    }
    rows, columns, num_warps, num_stages = tiles.values
    values_kernel[(min(MAX_PROGRAMS, ceil_div(num_neurons, rows)),)](
        x,
        gate_up,
        mask,
        kept,
        counts,
        values,
        num_tokens,
        num_neurons,
        hidden,
        num_segments,
        threshold,
        ACTIVATION=activation.value,
        BLOCK_N=rows,
        BLOCK_K=columns,
        num_warps=num_warps,
        num_stages=num_stages,
        **shared,
    )
    rows, columns, num_warps, num_stages = tiles.down
    down_kernel[(ceil_div(hidden, columns), tiles.splits)](
        values,
        down,
        kept,
        counts,
        partial,
        num_tokens,
        num_neurons,
        hidden,
        num_segments,
        BLOCK_N=rows,
        BLOCK_C=columns,
        num_warps=num_warps,
        num_stages=num_stages,
        **shared,
    )
    sum_kernel[(ceil_div(out.numel(), 128),)](
        partial, out, out.numel(), SPLITS=tiles.splits, BLOCK=128, num_warps=4
    )
    return out


ONE = Tiles(values=(4, 512, 4, 3), down=(16, 512, 4, 3), splits=32)
FEW = Tiles(values=(32, 128, 4, 4), down=(16, 256, 4, 3), splits=32)  # up to 16 tokens
MANY = Tiles(values=(64, 64, 4, 4), down=(16, 256, 4, 3), splits=32)
