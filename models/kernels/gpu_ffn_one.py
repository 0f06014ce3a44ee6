# ruff: noqa: RUF005
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
"""Triton: the sparse FFN of one token or two. The neurons that they keep are listed, and their rows
read one by one.

Deterministic: neurons are listed in order, and partial sums added in one. Nothing here asks the
host how many neurons there are. Experts' neurons lie one after the other and are one long layer:
who was not sent the token keeps none.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from ..config import Activation
from .gpu_gated import activate
from .gpu_launch import multiprocessors, overlap
from .gpu_list import FIRST, NEURON, listed
from .gpu_norm import rounded
from .sizes import ceil_div, power_of_two

MAX_TOKENS = 2
NEURONS, STAGES, WARPS = 2, 4, 8  # at a time, under way, and who multiplies them, in 16 bits
COLUMNS = 32  # of the partial sums that one program adds


@triton.jit
def one_kernel(
    x_ptr,
    norm_ptr,
    gate_up_ptr,
    down_ptr,
    routing_ptr,
    list_ptr,
    total_ptr,
    partial_ptr,
    threshold,
    eps,
    num_neurons,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORM: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A share of the listed neurons: their values for each token, which is zero where it does not
    keep one, and the sum of their output rows."""
    k = tl.arange(0, WIDTH)
    inside = k < HIDDEN
    kind = x_ptr.dtype.element_ty
    if PDL:
        gdc_launch_dependents()
    if NORM:
        norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    total = tl.load(total_ptr)
    xs = ()
    outs = ()
    for t in tl.static_range(TOKENS):
        xs = xs + (tl.load(x_ptr + t * HIDDEN + k, mask=inside, other=0.0).to(tl.float32),)
        outs = outs + (tl.zeros((WIDTH,), tl.float32),)
    if NORM:
        normed = ()
        for t in tl.static_range(TOKENS):
            factor = tl.rsqrt(tl.sum(xs[t] * xs[t], 0) / HIDDEN + eps)
            normed = normed + (rounded(xs[t], factor, norm, kind).to(tl.float32),)
        xs = normed
    blocks = tl.cdiv(total, BLOCK_N)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        entries = tl.load(list_ptr + places, mask=places < total, other=0)
        neurons = entries
        if TOKENS > 1:
            neurons = entries & NEURON
        whole = (places < total)[:, None] & inside[None, :]
        row = gate_up_ptr + neurons.to(tl.int64)[:, None] * (2 * HIDDEN) + k[None, :]
        gate = tl.load(row, mask=whole, other=0.0).to(tl.float32)
        up = tl.load(row + HIDDEN, mask=whole, other=0.0).to(tl.float32)
        row = down_ptr + neurons.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        down = tl.load(row, mask=whole, other=0.0).to(tl.float32)
        new = ()
        for t in tl.static_range(TOKENS):
            gate_sum = tl.sum(gate * xs[t][None, :], 1)
            up_sum = tl.sum(up * xs[t][None, :], 1)
            value = activate(gate_sum, up_sum, threshold, ACTIVATION)
            value = value.to(kind).to(tl.float32)
            if TOKENS > 1:
                value = tl.where((entries >> (FIRST + t)) & 1 != 0, value, 0.0)
            if ROUTED:
                value *= tl.load(routing_ptr + neurons // num_neurons)
            new = new + (outs[t] + tl.sum(value[:, None] * down, 0),)
        outs = new
    for t in tl.static_range(TOKENS):
        place = (tl.program_id(0) * TOKENS + t) * HIDDEN + k
        tl.store(partial_ptr + place, outs[t], mask=inside)


@triton.jit
def sum_kernel(
    partial_ptr,
    add_ptr,
    out_ptr,
    scale,
    num_parts,
    HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    """The partial sums of one token, added in one order."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    t = tl.program_id(1)
    if ADD:
        add_ptr += t * HIDDEN
    out_ptr += t * HIDDEN
    part = tl.arange(0, PARTS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    parts = tl.load(
        partial_ptr + (part[:, None] * TOKENS + t) * HIDDEN + column[None, :],
        mask=(part < num_parts)[:, None] & (column < HIDDEN)[None, :],
        other=0.0,
    )
    out = tl.sum(parts, 0)
    if ADD:
        add = tl.load(add_ptr + column, mask=column < HIDDEN, other=0.0).to(tl.float32)
        out = add + scale * out
    tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=column < HIDDEN)


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
    """`reference.ffn` for one token or two: reads only the rows that they keep.

    x is normed by norm [hidden] and eps first, the result scaled and added to `add`, where they are
    given. With routing, which is one token's, the neurons are E experts' one after the other, and
    their values are weighted; the mask of an expert that the token was not sent to is not read.
    """
    (num_tokens, hidden), total, device = x.shape, gate_up.shape[0], x.device
    num_neurons = total if routing is None else total // routing.weights.shape[1]
    half = x.element_size() == 2
    programs = min(multiprocessors(device), ceil_div(total, 2))
    partial = torch.empty(programs, num_tokens, hidden, dtype=torch.float32, device=device)
    one_kernel[(programs,)](
        x,
        norm,
        gate_up,
        down,
        None if routing is None else routing.weights,
        *listed(mask, routing, whose=num_tokens > 1),
        partial,
        threshold,
        eps,
        num_neurons,
        HIDDEN=hidden,
        WIDTH=power_of_two(hidden),
        TOKENS=num_tokens,
        BLOCK_N=NEURONS if half else 1,
        STAGES=STAGES if half else 3,
        ACTIVATION=activation.value,
        NORM=norm is not None,
        ROUTED=routing is not None,
        num_warps=WARPS if hidden > 1024 else 4,
        **overlap(device),
    )
    out = torch.empty_like(x)
    sum_kernel[(ceil_div(hidden, COLUMNS), num_tokens)](
        partial,
        add,
        out,
        scale,
        programs,
        HIDDEN=hidden,
        TOKENS=num_tokens,
        PARTS=power_of_two(programs),
        BLOCK_C=COLUMNS,
        ADD=add is not None,
        **overlap(device),
    )
    return out
