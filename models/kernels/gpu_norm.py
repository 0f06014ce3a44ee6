# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the root-mean-square norm, and the router of a mixture of experts."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from .gpu_launch import overlap
from .sizes import power_of_two

ROUTER = 32768  # elements that one program holds


@triton.jit
def rounded(x, factor, weight, KIND: tl.constexpr):
    """x * factor * weight, in fp32 but for where the reference rounds to what is stored."""
    return ((x * factor).to(KIND).to(tl.float32) * weight).to(KIND)


@triton.jit
def norm_token(
    t, x_ptr, weight_ptr, normed_ptr, eps, hidden, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Token t, once the kernel before has ended: any kernel's program may do it."""
    k = tl.arange(0, BLOCK)
    kind = normed_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + k, mask=k < hidden, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = t.to(tl.int64) * hidden + k
    x = tl.load(x_ptr + at, mask=k < hidden, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / hidden + eps)
    tl.store(normed_ptr + at, rounded(x, factor, weight, kind), mask=k < hidden)


@triton.jit
def norm_kernel(x_ptr, weight_ptr, normed_ptr, eps, hidden, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    norm_token(tl.program_id(0), x_ptr, weight_ptr, normed_ptr, eps, hidden, BLOCK, PDL)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`."""
    num_tokens, hidden = x.shape
    normed = torch.empty_like(x)
    norm_kernel[(num_tokens,)](
        x,
        weight,
        normed,
        eps,
        hidden,
        BLOCK=power_of_two(hidden),
        num_warps=8 if hidden > 1024 else 2,
        **overlap(x.device),
    )
    return normed


@triton.jit
def route_kernel(
    x_ptr,
    norm_ptr,
    normed_ptr,
    router_ptr,
    weights_ptr,
    chosen_ptr,
    eps,
    num_experts,
    num_chosen,
    HIDDEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token: of equally likely experts the first. NORM: it is normed first, and stored.

    WHOLE: a block holds all of the router, which is asked for before the token is there.
    """
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, EXPERTS)
    k = tl.arange(0, BLOCK)
    kind = x_ptr.dtype.element_ty
    if PDL:
        gdc_launch_dependents()
    if WHOLE:
        there = (e < num_experts)[:, None] & (k < HIDDEN)[None, :]
        early = tl.load(router_ptr + e[:, None] * HIDDEN + k[None, :], mask=there, other=0.0)
    if PDL:
        gdc_wait()
    factor = 1.0
    if NORM:
        square = tl.zeros((BLOCK,), tl.float32)
        for start in tl.static_range(0, HIDDEN, BLOCK):
            at = start + k
            x = tl.load(x_ptr + t * HIDDEN + at, mask=at < HIDDEN, other=0.0).to(tl.float32)
            square += x * x
        factor = tl.rsqrt(tl.sum(square, 0) / HIDDEN + eps)
    acc = tl.zeros((EXPERTS, BLOCK), tl.float32)
    for start in tl.static_range(0, HIDDEN, BLOCK):
        at = start + k
        x = tl.load(x_ptr + t * HIDDEN + at, mask=at < HIDDEN, other=0.0).to(tl.float32)
        if NORM:
            norm = tl.load(norm_ptr + at, mask=at < HIDDEN, other=0.0).to(tl.float32)
            normed = rounded(x, factor, norm, kind)
            tl.store(normed_ptr + t * HIDDEN + at, normed, mask=at < HIDDEN)
            x = normed.to(tl.float32)
        if WHOLE:
            router = early
        else:
            inside = (e < num_experts)[:, None] & (at < HIDDEN)[None, :]
            router = tl.load(router_ptr + e[:, None] * HIDDEN + at[None, :], mask=inside, other=0.0)
        acc += router.to(tl.float32) * x[None, :]
    logits = tl.sum(acc, 1).to(kind).to(tl.float32)  # as the reference's product
    logits = tl.where(e < num_experts, logits, float("-inf"))
    odds = tl.exp(logits - tl.max(logits, 0))
    left, chosen = odds, tl.zeros((EXPERTS,), tl.float32)
    for i in range(num_chosen):
        best = tl.argmax(left, 0)
        tl.store(chosen_ptr + t * num_chosen + i, best.to(tl.int64))
        chosen = tl.where(e == best, odds, chosen)
        left = tl.where(e == best, -1.0, left)
    weights = chosen / tl.sum(chosen, 0)
    tl.store(weights_ptr + t * num_experts + e, weights, mask=e < num_experts)


def route(x: Tensor, router: Tensor, num_chosen: int) -> Routing:
    """`reference.route`."""
    return _route(x, None, 0.0, router, num_chosen)[1]


def norm_route(
    residual: Tensor, norm: Tensor, eps: float, router: Tensor, num_chosen: int
) -> tuple[Tensor, Routing]:
    """`reference.norm_route`."""
    return _route(residual, norm, eps, router, num_chosen)


def _route(
    x: Tensor, norm: Tensor | None, eps: float, router: Tensor, num_chosen: int
) -> tuple[Tensor, Routing]:
    (num_tokens, hidden), num_experts = x.shape, router.shape[0]
    normed = x if norm is None else torch.empty_like(x)
    weights = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    chosen = torch.empty(num_tokens, num_chosen, dtype=torch.int64, device=x.device)
    experts, width = power_of_two(num_experts), power_of_two(hidden)
    whole = experts * width <= ROUTER
    route_kernel[(num_tokens,)](
        x,
        norm,
        normed,
        router,
        weights,
        chosen,
        eps,
        num_experts,
        num_chosen,
        HIDDEN=hidden,
        EXPERTS=experts,
        BLOCK=width if whole else min(1024, width),
        WHOLE=whole,
        NORM=norm is not None,
        num_warps=16 if whole and hidden > 1024 else 8,
        **overlap(x.device),
    )
    return normed, Routing(weights, chosen)
