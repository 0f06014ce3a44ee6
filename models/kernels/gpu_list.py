# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: lists of the neurons that a step needs, in order, and their number, on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from .gpu_launch import overlap
from .gpu_norm import norm_token
from .sizes import ceil_div, power_of_two

# of an entry: the first token's bit where it says whose the neuron is, and what is below it
FIRST, NEURON = tl.constexpr(24), tl.constexpr((1 << 24) - 1)
BLOCK, SHORT = 256, 512  # neurons that one program lists, and of one of several experts


@triton.jit
def list_kernel(
    mask_ptr,
    chosen_ptr,
    list_ptr,
    total_ptr,
    x_ptr,
    norm_ptr,
    normed_ptr,
    eps,
    num_neurons,
    num_blocks,
    HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr,
    ALL: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    ROUTED: tl.constexpr,
    WHOSE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """The neurons that any token keeps, and how many they are: in order, but experts as they were
    chosen. A program lists one block of one expert, and counts what comes before it. WHOSE: a bit
    for each token from FIRST on says whether it keeps the neuron. NORM: beside those programs, one
    for each token norms it."""
    block, expert = tl.program_id(0), 0
    a = tl.arange(0, ALL)
    n = block * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
    if NORM:  # noqa: SIM102, known when this is compiled
        if block >= num_blocks:
            token = block - num_blocks
            norm_token(token, x_ptr, norm_ptr, normed_ptr, eps, HIDDEN, WIDTH, PDL)
            return
    if PDL:
        gdc_wait()
    before = 0
    if ROUTED:
        for other in range(tl.program_id(1)):
            earlier = mask_ptr + tl.load(chosen_ptr + other) * num_neurons
            there = tl.load(earlier + a, mask=a < num_neurons, other=0)
            before += tl.sum(there.to(tl.int32), 0)
        expert = tl.load(chosen_ptr + tl.program_id(1)).to(tl.int32)
    mask_ptr += expert * num_neurons
    there = tl.load(mask_ptr + a, mask=a < block * BLOCK, other=0)
    whose = tl.load(mask_ptr + n, mask=n < num_neurons, other=0).to(tl.int32)
    for t in tl.static_range(1, TOKENS):
        row = mask_ptr + t * num_neurons
        there |= tl.load(row + a, mask=a < block * BLOCK, other=0)
        whose |= tl.load(row + n, mask=n < num_neurons, other=0).to(tl.int32) << t
    before += tl.sum(there.to(tl.int32), 0)
    kept = (whose != 0).to(tl.int32)
    place = before + tl.cumsum(kept, 0) - kept
    neurons = expert * num_neurons + n
    if WHOSE:
        neurons |= whose << FIRST
    tl.store(list_ptr + place, neurons, mask=kept != 0)
    if (block == num_blocks - 1) & (tl.program_id(1) == tl.num_programs(1) - 1):
        tl.store(total_ptr, before + tl.sum(kept, 0))


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
def place_kernel(
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


def listed(
    mask: Tensor, routing: Routing | None = None, *, whose: bool = False
) -> tuple[Tensor, Tensor]:
    """The neurons that any token keeps, int32 in order, and their number; mask [T, N] bool. With
    routing: of one token, expert by expert as it was sent; other experts' masks are not read. With
    `whose`, and T up to 7, an entry says in its upper bits which tokens keep the neuron."""
    return _list(mask, routing, whose, None, None, None, 0.0)


def listed_and_normed(
    mask: Tensor, x: Tensor, norm: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`listed`, and x [T, hidden], of which meanwhile `reference.rms_norm` is computed where there
    is a norm."""
    if norm is None:
        return *listed(mask), x
    normed = torch.empty_like(x)
    return *_list(mask, None, False, x, norm, normed, eps), normed


def _list(
    mask: Tensor,
    routing: Routing | None,
    whose: bool,
    x: Tensor | None,
    norm: Tensor | None,
    normed: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    (num_tokens, total), device = mask.shape, mask.device
    num_experts, num_chosen = 1, 1
    if routing is not None:
        num_experts, num_chosen = routing.weights.shape[1], routing.chosen.shape[1]
    num_neurons, hidden = total // num_experts, 1 if x is None else x.shape[1]
    kept = torch.empty(total, dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    blocks = ceil_div(num_neurons, BLOCK)
    list_kernel[(blocks + (0 if x is None else num_tokens), num_chosen)](
        mask.view(torch.uint8),
        None if routing is None else routing.chosen,
        kept,
        count,
        x,
        norm,
        normed,
        eps,
        num_neurons,
        blocks,
        HIDDEN=hidden,
        TOKENS=num_tokens,
        ALL=power_of_two(num_neurons),
        BLOCK=BLOCK,
        WIDTH=power_of_two(hidden),
        ROUTED=routing is not None,
        WHOSE=whose,
        NORM=x is not None,
        num_warps=8,  # four have too few registers for several tokens' masks
        **overlap(device),
    )
    return kept, count


def listed_of_experts(mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The neurons that any token keeps of the experts it was sent to, in order; their number."""
    (num_tokens, num_experts), total, device = weights.shape, mask.shape[1], mask.device
    num_neurons = total // num_experts
    grid = (ceil_div(num_neurons, SHORT), num_experts)
    any_token = torch.empty(total, dtype=torch.int32, device=device)
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
        TOKENS=power_of_two(num_tokens),
        BLOCK=SHORT,
        **overlap(device),
    )
    place_kernel[grid](
        any_token,
        counts,
        kept,
        num_kept,
        num_neurons,
        COUNTS=power_of_two(len(counts)),
        BLOCK=SHORT,
        **overlap(device),
    )
    return kept, num_kept
